//! A vocabulary as large as Llama 3's, of 128,256 tokens. With `--nocapture` it tells how long things take.

mod subject;

use std::time::{Duration, Instant};

use bitnet_grammar::{Compiler, Grammar};
use bitnet_model::Tokenizer;
use serde_json::{Map, Value, json};
use subject::{Chance, has};

const VOCAB: usize = 128_256;
const EOS: u32 = 128_009;

/// All bytes, then words of letters, digits and signs as such vocabularies have them, half of them with a space in front, then 256
/// special tokens.
fn tokenizer() -> Tokenizer {
    let mut vocab = Map::new();
    // The characters that stand for bytes: printable Latin-1 for itself, the others from U+0100 on.
    let mut others = 0x100..;
    for byte in 0..=255u8 {
        let own = matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        let code = if own {
            u32::from(byte)
        } else {
            others.next().unwrap()
        };
        vocab.insert(char::from_u32(code).unwrap().to_string(), json!(vocab.len()));
    }
    let mut chance = Chance(1);
    while vocab.len() < VOCAB - 256 {
        let mut word = if chance.below(2) == 0 {
            "Ġ".to_owned()
        } else {
            String::new()
        };
        let letters: &[u8] = match chance.below(12) {
            0 => b"0123456789",
            1 => b"{}[]\":,.()<>/-_=",
            2 => b"ABCDEFGHIJKLMNOPQRSTUVWXYZ",
            _ => b"eeeetttaaaoooinnshrdlucmfwypvbgkjqxz",
        };
        for _ in 0..=1 + chance.below(8) {
            word.push(char::from(letters[chance.below(letters.len())]));
        }
        let id = vocab.len();
        vocab.entry(word).or_insert(json!(id));
    }
    let added: Vec<Value> = (VOCAB - 256..VOCAB)
        .map(|id| {
            json!({"id": id, "content": format!("<|special_{id}|>"), "special": true, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false})
        })
        .collect();
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let json = json!({"version": "1.0", "added_tokens": added, "pre_tokenizer": byte_level, "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": [], "ignore_merges": true}});
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
    Tokenizer::from_folder(folder.path(), None, &[EOS]).unwrap()
}

/// Processor time of this program, in hundredths of a second, where the system tells it.
fn processor_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: u64 = fields
        .skip(11)
        .take(2)
        .filter_map(|ticks| ticks.parse::<u64>().ok())
        .sum();
    Duration::from_millis(10 * ticks)
}

#[test]
fn works_and_tells_its_times() {
    let tokenizer = tokenizer();
    let compiler = Compiler::new(&tokenizer, VOCAB, &[EOS]);
    let (begun, before) = (Instant::now(), processor_time());
    compiler.prepare().unwrap();
    println!(
        "the vocabulary: {:?}, {:?} of processor time",
        begun.elapsed(),
        processor_time() - before
    );
    let bytes = tokenizer.vocabulary(VOCAB).unwrap();
    let person = json!({"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 5}}, "required": ["name", "age", "tags"]});
    let wide: Map<String, Value> = (0..2_000)
        .map(|i| (format!("property{i}"), json!({"type": "string"})))
        .collect();
    for (name, grammar) in [
        ("an object", Grammar::JsonObject),
        ("a person", Grammar::JsonSchema(person)),
        ("a number", Grammar::Regex("[0-9]{3}-[a-f]{2}".to_owned())),
        ("free text", Grammar::Regex("(?s:.)*".to_owned())),
        (
            "2,000 properties",
            Grammar::JsonSchema(json!({"type": "object", "properties": wide})),
        ),
        (
            "hostile",
            Grammar::Regex("(.{0,900}a.{0,900}b.{0,900}|(a|b)*a(a|b){500})*".to_owned()),
        ),
        (
            "hostile classes",
            Grammar::Regex(r"[\p{L}\p{N}]{1,500}(\w|\s){3,900}".to_owned()),
        ),
    ] {
        let (begun, before) = (Instant::now(), processor_time());
        let mut mask = compiler.compile(&grammar).unwrap();
        let compiled = (begun.elapsed(), processor_time() - before);
        let begun = Instant::now();
        compiler.compile(&grammar).unwrap();
        let again = begun.elapsed();
        if name == "2,000 properties" {
            assert!(10 * again < compiled.0, "{compiled:?}, and again in {again:?}");
        }
        let mut chance = Chance(5);
        let (mut all, mut slowest, mut n) = (Duration::ZERO, Duration::ZERO, 0);
        let mut text = Vec::new();
        let mut is_over = false;
        while n < 100 && !is_over {
            let mut bits = vec![0; VOCAB.div_ceil(32)];
            let begun = Instant::now();
            let result = mask.allowed(&mut bits);
            let took = begun.elapsed();
            (all, slowest, n) = (all + took, slowest.max(took), n + 1);
            if let Err(error) = result {
                assert!(name.starts_with("hostile"), "{name}: {error}");
                break;
            }
            let allowed: Vec<u32> = (0..VOCAB as u32).filter(|&id| has(&bits, id)).collect();
            let id = allowed[chance.below(allowed.len())];
            text.extend_from_slice(if id == EOS { b"" } else { &bytes[id as usize] });
            is_over = mask.accept(id).unwrap();
        }
        println!(
            "{name}: compiled in {compiled:?}, again in {again:?}, a mask {:?}, the slowest {slowest:?}",
            all / n
        );
        let text = String::from_utf8_lossy(&text).into_owned();
        match name {
            "an object" | "a person" | "2,000 properties" => {
                assert!(text.trim_start().starts_with('{'), "{text}")
            }
            "a number" => assert!(text.len() == 6 && is_over, "{text}"),
            _ => {}
        }
    }
}
