//! The bundled model does what its card says, on the processor and on a GPU: a wrong kernel shows as a wrong sum.

mod program;

use std::path::{Path, PathBuf};

use bitnet_model::{Device, LoadOptions, Message, Model, Session, Want};
use program::{run, run_with_input, stdout};

/// Prompts side by side.
const SEQUENCES: usize = 50;
/// Tokens of a prompt and its answer.
const CONTEXT: usize = 256;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("demo-model")
}

/// Whether training left out sums and differences of these two numbers: `is_held_out` of tools/train-demo/data.py.
fn is_held_out(a: u32, b: u32) -> bool {
    (a.min(b) * 1000 + a.max(b)).wrapping_mul(2_654_435_761) >> 28 == 0
}

/// 200 pairs that training left out, half of them of two digits and half of three.
fn pairs() -> Vec<(u32, u32)> {
    let mut state = 1u32;
    let mut draw = |low: u32, high: u32| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        low + (state >> 8) % (high - low)
    };
    let mut pairs = Vec::new();
    while pairs.len() < 200 {
        let (low, high) = if pairs.len() < 100 { (10, 100) } else { (100, 1000) };
        let pair = (draw(low, high), draw(low, high));
        if is_held_out(pair.0, pair.1) && !pairs.contains(&pair) {
            pairs.push(pair);
        }
    }
    pairs
}

fn load(device: Device) -> Model {
    let options = LoadOptions {
        n_seqs: SEQUENCES,
        context: Some(CONTEXT),
        max_batch: CONTEXT,
        ..LoadOptions::from(device)
    };
    Model::load(folder(), options).unwrap()
}

fn arg_max(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (i, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = i;
        }
    }
    best as u32
}

/// The answers to some questions, computed side by side.
fn answers(model: &mut Model, questions: &[String]) -> Vec<String> {
    let groups = questions.chunks(SEQUENCES);
    groups.flat_map(|group| answer_group(model, group)).collect()
}

fn answer_group(model: &mut Model, questions: &[String]) -> Vec<String> {
    let template = model.chat_template().unwrap();
    let tokenizer = model.tokenizer().unwrap();
    let mut ids: Vec<Vec<u32>> = questions
        .iter()
        .map(|question| {
            let text = template.render(&[Message::user(question.as_str())]).unwrap();
            tokenizer.encode_prompt(&text).unwrap()
        })
        .collect();
    let prompts: Vec<usize> = ids.iter().map(Vec::len).collect();
    let (end, vocab) = (model.config().eos.clone(), model.config().vocab);
    let mut session = Session::new(model.backend_mut());
    let mut first = |(seq, ids): (usize, &Vec<u32>)| {
        let logits = session.step(&[(seq, ids)], Want::Logits(&[ids.len() - 1]));
        arg_max(logits.unwrap())
    };
    let mut chosen: Vec<u32> = ids.iter().enumerate().map(&mut first).collect();
    let mut open: Vec<usize> = (0..ids.len()).collect();
    loop {
        open.retain(|&i| !end.contains(&chosen[i]) && ids[i].len() < CONTEXT);
        if open.is_empty() {
            break;
        }
        let runs: Vec<(usize, &[u32])> = open.iter().map(|&i| (i, &chosen[i..=i])).collect();
        let rows: Vec<usize> = (0..open.len()).collect();
        let logits = session.step(&runs, Want::Logits(&rows)).unwrap().to_vec();
        for &i in &open {
            ids[i].push(chosen[i]);
        }
        for (&i, logits) in open.iter().zip(logits.chunks_exact(vocab)) {
            chosen[i] = arg_max(logits);
        }
    }
    let tokenizer = model.tokenizer().unwrap();
    ids.iter()
        .zip(prompts)
        .map(|(ids, prompt)| tokenizer.decode(&ids[prompt..]).unwrap())
        .collect()
}

/// The share of `questions` with the right answer, which must be `least` or more.
fn check(model: &mut Model, subject: &str, least: f64, questions: &[(String, String)]) {
    let asked: Vec<String> = questions.iter().map(|(question, _)| question.clone()).collect();
    let answers = answers(model, &asked);
    let wrong: Vec<_> = questions
        .iter()
        .zip(&answers)
        .filter(|((_, right), answer)| right != *answer)
        .collect();
    let share = 1.0 - wrong.len() as f64 / questions.len() as f64;
    let name = model.backend().spec().name.clone();
    println!(
        "{name}: {subject}: {} questions, {share:.4} right",
        questions.len()
    );
    assert!(
        share >= least,
        "{name}: {subject}: {share:.4} right; wrong: {wrong:#?}"
    );
}

/// What the model card promises.
fn check_card(device: Device) {
    let mut model = load(device);
    let pairs = pairs();
    let sums = |write: fn(u32, u32) -> String| -> Vec<(String, String)> {
        let ask = |&(a, b): &(u32, u32)| (write(a, b), format!("{a} + {b} = {}", a + b));
        pairs.iter().map(ask).collect()
    };
    check(&mut model, "sums", 0.95, &sums(|a, b| format!("{a} + {b}")));
    check(
        &mut model,
        "sums in words",
        0.95,
        &sums(|a, b| format!("What is {a} plus {b}?")),
    );
    let differences: Vec<_> = pairs
        .iter()
        .map(|&(a, b)| (a.max(b), a.min(b)))
        .map(|(a, b)| (format!("What is {a} - {b}?"), format!("{a} - {b} = {}", a - b)))
        .collect();
    check(&mut model, "differences", 0.9, &differences);
    let comparisons: Vec<_> = pairs
        .iter()
        .filter(|(a, b)| a != b)
        .map(|&(a, b)| {
            let right = format!("{} is larger than {}.", a.max(b), a.min(b));
            (format!("Which is larger, {a} or {b}?"), right)
        })
        .collect();
    check(&mut model, "comparisons", 0.95, &comparisons);
    let counting: Vec<_> = pairs
        .iter()
        .step_by(8)
        .map(|&(a, _)| {
            let numbers: Vec<String> = (a..=a + 5).map(|i| i.to_string()).collect();
            (format!("Count from {a} to {}.", a + 5), numbers.join(", "))
        })
        .collect();
    check(&mut model, "counting", 0.9, &counting);
    // None of them is among the words of tools/train-demo/facts.py.
    let words = [
        "pocketbook",
        "sandal",
        "violin",
        "marble",
        "pigeon",
        "harbour",
        "blossom",
        "meadow",
        "lantern",
        "magnet",
        "parrot",
        "velvet",
        "walnut",
        "saddle",
        "pepperoni",
        "ribbon",
        "tunnel",
        "helmet",
        "cactus",
        "donkey",
    ];
    let backwards: Vec<_> = words
        .iter()
        .map(|word| (format!("Spell {word} backwards."), word.chars().rev().collect()))
        .collect();
    check(&mut model, "words backwards", 0.9, &backwards);
    let knowledge = [
        (
            "Which GPUs are supported?",
            "NVIDIA GPUs of compute capability 8.0 or higher, on Linux.",
        ),
        ("How do I run the tests?", "cargo test --workspace"),
        (
            "Do I need Python?",
            "No. Neither building nor running it needs Python.",
        ),
        ("What is the license?", "MIT or Apache-2.0, at your option."),
        (
            "Why 1.58?",
            "Because a weight with three values holds log2(3) = 1.58 bits.",
        ),
        ("12 * 12", "I only add and subtract whole numbers, two at a time."),
        ("Thank you", "You are welcome."),
    ];
    let knowledge = knowledge.map(|(question, answer)| (question.to_owned(), answer.to_owned()));
    check(&mut model, "knowledge", 1.0, &knowledge);
}

/// The program decodes one sequence in its own way, and comes to what the library computes side by side.
fn check_program(device: Device, flag: &str) {
    let questions: Vec<String> = pairs()
        .iter()
        .step_by(20)
        .map(|(a, b)| format!("{a} + {b}"))
        .collect();
    let answers = answers(&mut load(device), &questions);
    for (question, answer) in questions.iter().zip(&answers) {
        let args = [
            "--chat-format",
            "--temp",
            "0",
            "-q",
            "--device",
            flag,
            "-p",
            question,
        ];
        let output = run("generate", &folder(), &args);
        assert_eq!(stdout(&output).trim_end(), answer);
    }
}

#[test]
fn the_card_is_true_on_the_processor() {
    check_card(Device::Cpu);
}

#[test]
fn the_program_gives_the_answers_of_the_library() {
    check_program(Device::Cpu, "cpu");
}

#[cfg(feature = "cuda")]
#[test]
fn both_are_true_on_a_gpu() {
    match bitnet_model::cuda_probe(0) {
        Ok(_) => {
            check_card(Device::Cuda(0));
            check_program(Device::Cuda(0), "cuda");
        }
        Err(error) => {
            let is_required = std::env::var("BITNET_GPU").as_deref() == Ok("required");
            assert!(!is_required, "{error}");
            println!("not tested: {error}");
        }
    }
}

#[test]
fn a_conversation_goes_on_with_the_last_result() {
    let output = run_with_input("chat", &folder(), &[], "47 + 85\nplus 20?\nand minus 2?\n");
    let text = stdout(&output);
    for line in ["47 + 85 = 132", "132 + 20 = 152", "152 - 2 = 150"] {
        assert!(text.contains(line), "{text}");
    }
}
