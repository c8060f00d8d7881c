//! Decoding on the GPU while sequences come and go: each gets the tokens it gets alone, whoever sits beside it, from shared
//! pages or its own. Returns early, saying so, where there is no GPU.
#![cfg(feature = "cuda")]

mod prompts;

use bitnet_layout::random::Random;
use bitnet_model::{
    Backend, Checkpoint, CudaBackend, CudaOptions, KvMemory, KvType, LmHead, Pages, Run, Sampler, Sampling,
    Seq, Session, Want, WeightForm,
};
use prompts::{FOLDERS, expected, folder};

const CONTEXT: usize = 512;

/// The model on the GPU, or `None` where there is none.
fn open(checkpoint: &Checkpoint, n_seqs: usize) -> Option<CudaBackend> {
    if let Err(error) = bitnet_model::cuda_probe(0) {
        let is_required = std::env::var("BITNET_GPU").as_deref() == Ok("required");
        assert!(!is_required, "{error}");
        println!("not tested: {error}");
        return None;
    }
    let options = CudaOptions {
        device: 0,
        context: CONTEXT,
        n_seqs,
        kv_type: KvType::Bf16,
        kv_memory: KvMemory::Auto,
        max_batch: 256,
        lm_head: LmHead::Certified,
        weights: WeightForm::Ternary,
        sync: false,
    };
    Some(CudaBackend::new(checkpoint, options).unwrap())
}

/// What one request is: a prompt, and how many tokens are chosen how.
struct Request {
    prompt: Vec<u32>,
    sampling: Sampling,
    n: usize,
}

impl Request {
    /// Prompts begin alike for 0, 64 or 130 tokens; the choice is of every kind.
    fn new(number: usize, ids: &[u32], random: &mut Random) -> Self {
        let alike = [0, 64, 130][number % 3];
        let own = 1 + random.word() as usize % 90;
        let mut prompt: Vec<u32> = ids.iter().copied().cycle().take(alike).collect();
        prompt.extend(ids.iter().cycle().skip(7 * number).take(own));
        let drawn = Sampling {
            temperature: 0.9,
            seed: number as u64,
            ..Sampling::default()
        };
        let plain = Sampling {
            seed: number as u64,
            ..Sampling::plain()
        };
        let sampling = match number % 8 {
            0 | 6 => Sampling::greedy(),
            1 => drawn,
            2 => plain,
            3 => Sampling {
                repeat_penalty: 1.3,
                frequency_penalty: 0.1,
                repeat_last_n: 20,
                ..drawn
            },
            4 => Sampling {
                top_p: 0.9,
                min_p: 0.01,
                repeat_penalty: 1.2,
                repeat_last_n: 20,
                ..plain
            },
            5 => Sampling {
                top_k: 300,
                top_p: 0.8,
                temperature: 1.4,
                ..plain
            },
            // OpenAI's penalties, of the answer alone.
            _ => Sampling {
                presence_penalty: 0.5,
                frequency_penalty: 0.2,
                ..plain
            },
        };
        Self {
            prompt,
            sampling,
            n: 1 + random.word() as usize % 60,
        }
    }

    fn sampler(&self) -> Sampler {
        let mut sampler = Sampler::new(self.sampling.clone()).unwrap();
        self.prompt.iter().for_each(|&id| sampler.accept(id));
        sampler.begin_answer();
        sampler
    }

    /// The tokens that the host chooses from the logits of steps.
    fn alone(&self, session: &mut Session<'_>) -> Vec<u32> {
        session.rewind(0, 0);
        let mut sampler = self.sampler();
        let mut next = self.prompt.clone();
        let mut choose = |_| {
            let last = next.len() - 1;
            let logits = session.step(&[(0, &next)], Want::Logits(&[last])).unwrap();
            let id = sampler.sample(logits).unwrap();
            sampler.accept(id);
            next = vec![id];
            id
        };
        (0..self.n).map(&mut choose).collect()
    }
}

/// A request on a seat.
struct Sitting {
    request: usize,
    seq: Seq,
    tokens: Vec<u32>,
}

#[test]
fn sequences_come_and_go_and_keep_their_tokens() {
    let is_checked = std::env::var_os("BITNET_GPU_CHECKED").is_some();
    let (n_requests, n_seats) = if is_checked { (6, 3) } else { (120, 20) };
    let name = FOLDERS[0];
    let checkpoint = Checkpoint::open(folder(name)).unwrap();
    let Some(mut gpu) = open(&checkpoint, n_seats) else {
        return;
    };
    let ids: Vec<u32> = expected(&folder(name))
        .iter()
        .flat_map(|prompt| prompt.ids.clone())
        .collect();
    let mut random = Random::new(11);
    let requests: Vec<Request> = (0..n_requests)
        .map(|number| Request::new(number, &ids, &mut random))
        .collect();
    let mut session = Session::new(&mut gpu);
    let alone: Vec<Vec<u32>> = requests.iter().map(|r| r.alone(&mut session)).collect();

    let mut pages = Pages::new(gpu.spec());
    let mut seats: Vec<Option<Sitting>> = (0..n_seats).map(|_| None).collect();
    let (mut waiting, mut done, mut unread, mut most) = (0, 0, 0, 0);
    let mut found = Vec::new();
    while done < n_requests {
        // Nobody comes, or some do.
        for _ in 0..random.word() % 3 {
            let free = seats.iter().position(Option::is_none);
            let Some(seat) = free.filter(|_| waiting < n_requests) else {
                break;
            };
            let request = &requests[waiting];
            let last = request.prompt.len() - 1;
            let (seq, _) = pages.open(&request.prompt[..last], 0);
            let rest = &request.prompt[pages.ids(&seq).len()..last];
            if !rest.is_empty() {
                let batch = pages.batch(&[Run { seq: &seq, ids: rest }]).unwrap();
                gpu.step(&batch, Want::Nothing).unwrap();
            }
            let decoder = gpu.decoder().unwrap();
            pages.reserve(&seq, request.n + decoder.lookahead()).unwrap();
            if pages.has_copies() {
                let batch = pages.batch(&[]).unwrap();
                gpu.step(&batch, Want::Nothing).unwrap();
            }
            let decoder = gpu.decoder().unwrap();
            let start = pages.start(&seq, request.prompt[last]).unwrap();
            assert!(decoder.seat(seat, start, &request.sampler()).unwrap());
            seats[seat] = Some(Sitting {
                request: waiting,
                seq,
                tokens: Vec::new(),
            });
            waiting += 1;
        }
        most = most.max(seats.iter().flatten().count());
        let decoder = gpu.decoder().unwrap();
        if seats.iter().any(Option::is_some) && unread < 8 {
            let steps = 1 + random.word() as usize % 3;
            decoder.ahead(steps).unwrap();
            unread += steps;
        }
        while unread > 0 && !random.word().is_multiple_of(4) {
            found.clear();
            decoder.next(&mut found).unwrap();
            unread -= 1;
            for (seat, id) in found.drain(..) {
                seats[seat].as_mut().unwrap().tokens.push(id.unwrap());
            }
            // Those who have enough leave at once; what was computed ahead for them is dropped.
            for (number, seat) in seats.iter_mut().enumerate() {
                let is_over = |s: &Sitting| s.tokens.len() == requests[s.request].n;
                if let Some(sitting) = seat.take_if(|s| is_over(s)) {
                    decoder.leave(number);
                    assert_eq!(
                        sitting.tokens, alone[sitting.request],
                        "request {} on seat {number}",
                        sitting.request
                    );
                    let request = &requests[sitting.request];
                    let last = request.prompt[request.prompt.len() - 1];
                    pages.advance(&sitting.seq, &[last]).unwrap();
                    pages
                        .advance(&sitting.seq, &sitting.tokens[..request.n - 1])
                        .unwrap();
                    pages.close(sitting.seq, true);
                    done += 1;
                }
            }
        }
    }
    assert!(most * 2 > n_seats, "{most} of {n_seats} seats were taken at once");
    pages.check().unwrap();
}

/// The widest batch there is, and one that is idle but for one row.
#[test]
fn all_seats_at_once() {
    // On Hopper those of 40 to 160 are computed in shares, side by side.
    let (sizes, steps): (&[usize], usize) = if std::env::var_os("BITNET_GPU_CHECKED").is_some() {
        (&[40, 3], 3)
    } else {
        (&[256, 160, 129, 112, 96, 72, 65, 40, 3], 70)
    };
    let name = FOLDERS[0];
    let checkpoint = Checkpoint::open(folder(name)).unwrap();
    let Some(mut gpu) = open(&checkpoint, sizes[0]) else {
        return;
    };
    let ids = expected(&folder(name)).swap_remove(0).ids;
    let mut session = Session::new(&mut gpu);
    let greedy = Sampler::new(Sampling::greedy()).unwrap();
    for &n in sizes {
        let first: Vec<(usize, u32)> = (0..n).map(|seq| (seq, ids[seq % ids.len()])).collect();
        (0..n).for_each(|seq| session.rewind(seq, 0));
        let mut rows = vec![Vec::new(); n];
        let take = |ids: &[u32]| {
            rows.iter_mut().zip(ids).for_each(|(row, &id)| row.push(id));
            std::ops::ControlFlow::Continue(())
        };
        assert!(
            session
                .decode(&first, &vec![greedy.clone(); n], steps, take)
                .unwrap()
        );
        for seq in 0..n {
            // Sequences that begin with the same token are equal.
            assert_eq!(rows[seq], rows[seq % ids.len()], "{seq} of {n}");
        }
        session.rewind(0, 0);
        let mut alone: Vec<u32> = Vec::new();
        let take = |ids: &[u32]| {
            alone.extend(ids);
            std::ops::ControlFlow::Continue(())
        };
        assert!(
            session
                .decode(&first[..1], std::slice::from_ref(&greedy), steps, take)
                .unwrap()
        );
        assert_eq!(rows[0], alone, "{n} at once");
    }
}
