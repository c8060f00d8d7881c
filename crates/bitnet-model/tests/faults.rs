//! What fails, and what does not fail with it: requests, steps, and the thread of an engine.

mod schedules;

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use bitnet_model::schedule::{
    Event, FinishReason, GenerateOptions, Id, Mask, Request, ScheduleOptions, Scheduler, StepKind, StepReport,
};
use bitnet_model::{Engine, Error, Result, Sampling};
use schedules::toy::{POISON, Toy};

fn greedy(max_tokens: usize) -> GenerateOptions {
    GenerateOptions {
        sampling: Sampling::greedy(),
        max_tokens: Some(max_tokens),
        ignore_eos: true,
        ..GenerateOptions::default()
    }
}

/// Runs until all is told.
fn rest(scheduler: &mut Scheduler<'_>) -> Vec<(Id, Event)> {
    let mut events = Vec::new();
    while !scheduler.is_idle() {
        events.extend(scheduler.step());
        scheduler.check().unwrap();
    }
    events
}

fn tokens(events: &[(Id, Event)], of: Id) -> Vec<u32> {
    let token = |(id, event): &(Id, Event)| match event {
        Event::Token { id: token, .. } if *id == of => Some(*token),
        _ => None,
    };
    events.iter().filter_map(token).collect()
}

fn failure(events: &[(Id, Event)], of: Id) -> Option<&Error> {
    events.iter().find_map(|(id, event)| match event {
        Event::Failed(error) if *id == of => Some(error),
        _ => None,
    })
}

fn found(events: &[(Id, Event)], of: Id) -> Option<usize> {
    events.iter().find_map(|(id, event)| match event {
        Event::Started { cached } if *id == of => Some(*cached),
        _ => None,
    })
}

#[test]
fn what_is_no_number_fails_its_request_alone_and_is_found_by_nobody() {
    for seats in [0, 4] {
        let mut toy = Toy::new(4, 100, 64, seats);
        let mut scheduler = Scheduler::new(Box::new(&mut toy), None, ScheduleOptions::default());
        let good: Vec<u32> = (10..24).collect();
        let bad = [&[POISON], &good[1..]].concat();
        let ask = |scheduler: &mut Scheduler<'_>, prompt: &[u32], n| {
            scheduler
                .submit(Request::new(prompt.to_vec(), greedy(n)))
                .unwrap()
        };
        let alone = ask(&mut scheduler, &good, 12);
        let events = rest(&mut scheduler);
        let expected = tokens(&events, alone);
        assert_eq!(expected.len(), 12);

        // Its prompt is computed before anybody sees what comes of it, and another one shares it meanwhile.
        let fine = ask(&mut scheduler, &good, 12);
        let pages = ask(&mut scheduler, &bad, 0);
        let mut events = scheduler.step();
        assert!(failure(&events, pages).is_none());
        let first = ask(&mut scheduler, &bad, 5);
        let second = ask(&mut scheduler, &[&bad[..], &[7, 7, 7, 7, 7]].concat(), 5);
        events.extend(rest(&mut scheduler));
        assert_eq!(tokens(&events, fine), expected, "{seats} seats");
        assert_eq!(found(&events, first), Some(12));
        for id in [first, second] {
            assert!(matches!(failure(&events, id), Some(Error::Damaged(_))));
            assert!(tokens(&events, id).is_empty());
        }
        // What was found to be wrong is computed again; the rest stays.
        let (again, fine) = (ask(&mut scheduler, &bad, 5), ask(&mut scheduler, &good, 12));
        let events = rest(&mut scheduler);
        assert_eq!((found(&events, again), found(&events, fine)), (Some(0), Some(12)));
        assert_eq!(tokens(&events, fine), expected);
        let stats = scheduler.stats();
        assert_eq!((stats.damaged, stats.failures, stats.pages_held), (3, 0, 0));
    }
}

#[test]
fn a_failed_step_ends_its_requests_and_the_others_go_on() {
    for seats in [0, 4] {
        let prompts = [vec![9; 8], vec![8; 8]];
        let expected: Vec<Vec<u32>> = prompts
            .iter()
            .map(|prompt| {
                let mut toy = Toy::new(4, 100, 64, 0);
                let mut scheduler = Scheduler::new(Box::new(&mut toy), None, ScheduleOptions::default());
                let id = scheduler.submit(Request::new(prompt.clone(), greedy(6))).unwrap();
                tokens(&rest(&mut scheduler), id)
            })
            .collect();
        let mut toy = Toy::new(4, 100, 64, seats);
        // The first step computes the prompt of the one that then pauses, the next one fails.
        (toy.fails_after, toy.recovers) = (Some(1), true);
        let mut scheduler = Scheduler::new(Box::new(&mut toy), None, ScheduleOptions::default());
        let paused = scheduler
            .submit(Request::new(prompts[0].clone(), greedy(6)))
            .unwrap();
        let mut events = scheduler.step();
        scheduler.pause(paused, true);
        let failing = scheduler
            .submit(Request::new(prompts[1].clone(), greedy(6)))
            .unwrap();
        events.extend(scheduler.step());
        assert_eq!(
            failure(&events, failing).map(ToString::to_string),
            Some("unplugged".to_owned())
        );
        assert_eq!(failure(&events, paused).map(ToString::to_string), None);
        assert_eq!((scheduler.stats().failures, scheduler.stats().waiting), (1, 1));
        scheduler.check().unwrap();
        // What the failed step may have left is found by nobody, and one that succeeds ends the row of failures.
        let again = scheduler
            .submit(Request::new(prompts[1].clone(), greedy(6)))
            .unwrap();
        scheduler.pause(paused, false);
        events.extend(rest(&mut scheduler));
        assert_eq!(found(&events, again), Some(0));
        assert_eq!(tokens(&events, paused), expected[0], "{seats} seats");
        assert_eq!(tokens(&events, again), expected[1], "{seats} seats");
        assert_eq!(scheduler.stats().failures, 0);
    }
}

/// A mask that panics where it is told to.
struct Mistaken(&'static str);

impl Mask for Mistaken {
    fn allowed(&mut self, bits: &mut [u32]) -> Result<()> {
        assert_ne!(self.0, "allowed");
        bits.fill(u32::MAX);
        Ok(())
    }
    fn accept(&mut self, _: u32) -> Result<bool> {
        assert_ne!(self.0, "accept");
        Ok(false)
    }
    fn rollback(&mut self, _: usize) -> Result<()> {
        Ok(())
    }
    fn fork(&self) -> Box<dyn Mask> {
        assert_ne!(self.0, "fork");
        Box::new(Self(self.0))
    }
}

#[test]
fn a_mask_with_a_mistake_fails_its_request_alone() {
    let mut toy = Toy::new(4, 100, 64, 0);
    let mut scheduler = Scheduler::new(Box::new(&mut toy), None, ScheduleOptions::default());
    let mut submit = |mask: Option<&'static str>| {
        let request = Request {
            n: 2,
            mask: mask.map(|what| -> Box<dyn Mask> { Box::new(Mistaken(what)) }),
            ..Request::new(vec![9; 8], greedy(3))
        };
        scheduler.submit(request).unwrap()
    };
    let bad = ["allowed", "accept", "fork"].map(|what| submit(Some(what)));
    let good = [submit(Some("nothing")), submit(None)];
    let events = rest(&mut scheduler);
    for id in bad {
        let message = failure(&events, id).map(ToString::to_string);
        assert_eq!(
            message.as_deref(),
            Some("a mask failed: there is a mistake in its program")
        );
    }
    for id in good {
        assert!(failure(&events, id).is_none());
        assert_eq!(tokens(&events, id).len(), 6);
    }
}

/// An engine of a toy, and what its observer saw.
fn engine(toy: Toy) -> (Engine, Arc<Mutex<Vec<StepReport>>>) {
    let scheduler = Scheduler::new(Box::new(toy), None, ScheduleOptions::default());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let all = Arc::clone(&seen);
    let observer = move |report: &StepReport, _: &_| all.lock().unwrap().push(*report);
    let engine = Engine::start_scheduler(scheduler, None, GenerateOptions::default(), observer).unwrap();
    (engine, seen)
}

#[test]
fn an_engine_tells_of_every_step_and_of_its_health() {
    for seats in [0, 4] {
        let (engine, seen) = engine(Toy::new(4, 100, 64, seats));
        let client = engine.client();
        let health = client.health();
        assert!(health.is_alive && !health.has_work && health.last_step.is_none());
        let before = Instant::now();
        let answers: Vec<_> = (0..3)
            .map(|i| client.stream(Request::new(vec![i + 8; 8], greedy(5))).unwrap())
            .collect();
        for stream in answers {
            assert_eq!(stream.filter(|e| matches!(e, Event::Token { .. })).count(), 5);
        }
        let stats = client.stats();
        assert_eq!((stats.running, stats.waiting, stats.pages_held), (0, 0, 0));
        assert_eq!((stats.queried_tokens, stats.cached_tokens), (24, 0));
        let health = client.health();
        assert!(health.is_alive && health.last_step.unwrap() >= before && health.failures == 0);
        drop(engine);
        let seen = seen.lock().unwrap();
        let sum = |of: fn(&StepReport) -> usize| seen.iter().map(of).sum::<usize>();
        assert_eq!((sum(|s| s.prompt_tokens), sum(|s| s.tokens)), (24, 15));
        assert_eq!(sum(|s| s.prompt_tokens) as u64, stats.prompt_tokens);
        // The last token of an answer is not computed.
        assert_eq!(sum(|s| s.batch), 24 + 12);
        assert!(
            seen.iter()
                .any(|s| s.kind() == StepKind::Decode && s.time > Duration::ZERO)
        );
        assert!(seen.iter().any(|s| s.kind() != StepKind::Decode));
        assert!(!client.health().is_alive);
    }
}

#[test]
fn a_panic_of_the_engine_is_told_to_all_who_wait() {
    let mut toy = Toy::new(4, 100, 64, 0);
    toy.panics_after = Some(3);
    let (engine, _) = engine(toy);
    let client = engine.client();
    let (sender, receiver) = mpsc::channel();
    let ask = |i: u32| {
        let sender = sender.clone();
        client.submit(Request::new(vec![i; 8], greedy(20)), move |event| {
            let _ = sender.send((i, event));
            ControlFlow::Continue(())
        })
    };
    let asked = (8..11).filter(|&i| ask(i).is_ok()).count();
    drop(sender);
    let failed: Vec<String> = receiver
        .iter()
        .filter_map(|(_, event)| match event {
            Event::Failed(error) => Some(error.to_string()),
            _ => None,
        })
        .collect();
    assert_eq!(failed.len(), asked);
    assert!(
        failed
            .iter()
            .all(|message| message.contains("the engine has ended by a mistake in its program"))
    );
    let health = client.health();
    assert!(!health.is_alive && !health.has_work);
    assert_eq!((client.stats().running, client.stats().waiting), (0, 0));
    let refused = client.stream(Request::new(vec![8], greedy(1)));
    assert!(refused.unwrap_err().to_string().contains("the engine has ended"));
    drop(engine);
}

#[test]
fn a_sink_that_panics_ends_its_request_alone() {
    let (engine, _) = engine(Toy::new(4, 100, 64, 0));
    let client = engine.client();
    let other = client.stream(Request::new(vec![9; 8], greedy(30))).unwrap();
    let sink = |event: Event| match event {
        Event::Token { .. } => panic!("a sink with a mistake"),
        _ => ControlFlow::Continue(()),
    };
    client.submit(Request::new(vec![8; 8], greedy(30)), sink).unwrap();
    let mut end = None;
    for event in other {
        if let Event::Finished { reason, .. } = event {
            end = Some(reason);
        }
    }
    assert_eq!(end, Some(FinishReason::Length));
    assert!(client.health().is_alive);
}

#[test]
fn a_step_that_takes_long_shows_and_counts_can_be_read_meanwhile() {
    let (engine, _) = engine(Toy::new(4, 100, 64, 0));
    let client = engine.client();
    // A sink that waits holds the thread as a device does that hangs.
    let (entered, is_in) = mpsc::channel();
    let (release, held) = mpsc::channel::<()>();
    let sink = move |event: Event| {
        if let Event::Token { .. } = event {
            let _ = entered.send(());
            let _ = held.recv();
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    };
    client.submit(Request::new(vec![8; 8], greedy(30)), sink).unwrap();
    is_in.recv().unwrap();
    let waiting = client
        .stream(Request {
            n: 2,
            ..Request::new(vec![9; 8], greedy(3))
        })
        .unwrap();
    std::thread::sleep(Duration::from_millis(20));
    let health = client.health();
    assert!(health.is_alive && health.has_work && health.silent >= Duration::from_millis(20));
    assert_eq!((client.stats().running, client.stats().waiting), (1, 2));
    release.send(()).unwrap();
    assert_eq!(waiting.filter(|e| matches!(e, Event::Finished { .. })).count(), 2);
    // It soon waits for the next request.
    while client.health().has_work {
        std::thread::yield_now();
    }
    assert_eq!(client.health().silent, Duration::ZERO);
}
