//! Which files of a repository running its model needs.

use crate::{Error, ModelName, Result};

/// The form that the weights have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A folder with config.json, safetensors files and a tokenizer.
    Safetensors,
    /// One file, or the first part of a split one, with everything in it.
    Gguf,
}

/// The files of a model.
#[derive(Debug)]
pub(crate) struct Choice {
    pub(crate) format: Format,
    /// Small files, which are fetched first: where the weights are, everything is.
    pub(crate) small: Vec<String>,
    pub(crate) weights: Weights,
}

/// The large files.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Weights {
    /// These.
    Files(Vec<String>),
    /// Those that this small file, an index of tensors, names.
    Index(String),
}

const CONFIG: &str = "config.json";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const TOKENIZER: &str = "tokenizer.json";

/// What a folder may hold besides its configuration and weights: tokenizer, template, sampling, and what embeds with it.
const SMALL: [&str; 10] = [
    "generation_config.json",
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "modules.json",
    "1_Pooling/config.json",
    "config_sentence_transformers.json",
];

/// What is read only where there is no tokenizer.json.
const SENTENCE_PIECE: &str = "tokenizer.model";

/// Quantizations that keep ternary weights exact, best supported ones first.
const TERNARY: [&str; 7] = ["I2_S", "TQ2_0", "TQ1_0", "IQ2_BN", "IQ2_BN_R4", "IQ1_BN", "Q2_0"];

/// The files of `names` that `name` asks for.
pub(crate) fn choose(name: &ModelName, names: &[String]) -> Result<Choice> {
    let has = |file: &str| names.iter().any(|name| name == file);
    let folder = has(CONFIG) && (has(SINGLE) || has(INDEX));
    match name.choice() {
        None if folder => Ok(safetensors(&has)),
        Some(choice) if folder && choice.eq_ignore_ascii_case("safetensors") => Ok(safetensors(&has)),
        choice => gguf(name, choice, names),
    }
}

fn safetensors(has: &dyn Fn(&str) -> bool) -> Choice {
    let mut small = vec![CONFIG.to_owned()];
    small.extend(SMALL.iter().filter(|file| has(file)).map(|&file| file.to_owned()));
    if !has(TOKENIZER) && has(SENTENCE_PIECE) {
        small.push(SENTENCE_PIECE.to_owned());
    }
    let weights = if has(SINGLE) {
        Weights::Files(vec![SINGLE.to_owned()])
    } else {
        small.push(INDEX.to_owned());
        Weights::Index(INDEX.to_owned())
    };
    Choice {
        format: Format::Safetensors,
        small,
        weights,
    }
}

fn gguf(name: &ModelName, choice: Option<&str>, names: &[String]) -> Result<Choice> {
    let all = gguf_files(names);
    let repo = || name.with(None, name.revision()).to_string();
    let found: Vec<&GgufFile> = match choice {
        None if all.is_empty() => return Err(Error::NoWeights { name: repo() }),
        None if all.len() == 1 => all.iter().collect(),
        None => {
            let only_one = |quantization: &&str| {
                let mut fits = all.iter().filter(|file| file.is_quantized(quantization));
                fits.next().filter(|_| fits.next().is_none())
            };
            match TERNARY.iter().find_map(only_one) {
                Some(file) => vec![file],
                None => all.iter().collect(),
            }
        }
        Some(choice) => all
            .iter()
            .filter(|file| file.is_called(choice) || file.is_quantized(choice))
            .collect(),
    };
    match found[..] {
        [file] => {
            if let Some(part) = file.missing() {
                return Err(Error::NoPart { name: repo(), part });
            }
            Ok(Choice {
                format: Format::Gguf,
                small: Vec::new(),
                weights: Weights::Files(file.parts.clone()),
            })
        }
        [] => Err(Error::NoFile {
            name: repo(),
            choice: choice.unwrap_or_default().to_owned(),
            files: all.iter().map(|file| file.parts[0].clone()).collect(),
        }),
        _ => Err(Error::Ambiguous {
            name: repo(),
            files: found.iter().map(|file| file.parts[0].clone()).collect(),
        }),
    }
}

/// A GGUF file, whole or split.
#[derive(Debug)]
pub(crate) struct GgufFile {
    /// Its name without what all parts end with.
    stem: String,
    /// The names of the parts that are there, in order.
    pub(crate) parts: Vec<String>,
    /// How many parts there should be.
    n_parts: usize,
}

impl GgufFile {
    /// The first part that is not there.
    pub(crate) fn missing(&self) -> Option<String> {
        let part = |i| format!("{}-{i:05}-of-{:05}.gguf", self.stem, self.n_parts);
        (self.n_parts > 1)
            .then(|| {
                (1..=self.n_parts)
                    .map(part)
                    .find(|part| !self.parts.contains(part))
            })
            .flatten()
    }

    /// Whether `choice` is the name of the file or of one of its parts, with or without the folders above it.
    fn is_called(&self, choice: &str) -> bool {
        self.parts
            .iter()
            .any(|part| part == choice || part.rsplit('/').next() == Some(choice))
    }

    /// Whether the name says that the file is quantized so: between signs, but not followed by `_`, after which
    /// quantizations have variants.
    fn is_quantized(&self, quantization: &str) -> bool {
        let stem = self
            .stem
            .rsplit('/')
            .next()
            .unwrap_or_default()
            .to_ascii_lowercase();
        let wanted = quantization.to_ascii_lowercase();
        stem.match_indices(&wanted).any(|(at, _)| {
            let before = stem[..at].chars().next_back();
            let after = stem[at + wanted.len()..].chars().next();
            !before.is_some_and(char::is_alphanumeric)
                && !after.is_some_and(|c| c.is_alphanumeric() || c == '_')
        })
    }
}

/// The GGUF files of a repository, without those that hold a projector for images.
pub(crate) fn gguf_files(names: &[String]) -> Vec<GgufFile> {
    let mut files: Vec<GgufFile> = Vec::new();
    let mut sorted: Vec<&String> = names.iter().collect();
    sorted.sort();
    for name in sorted {
        let Some(whole) = name.strip_suffix(".gguf") else {
            continue;
        };
        if whole
            .rsplit('/')
            .next()
            .is_some_and(|file| file.starts_with("mmproj"))
        {
            continue;
        }
        let (stem, n_parts) = split(whole).unwrap_or((whole, 1));
        match files
            .iter_mut()
            .find(|file| n_parts > 1 && file.stem == stem && file.n_parts == n_parts)
        {
            Some(file) => file.parts.push(name.clone()),
            None => files.push(GgufFile {
                stem: stem.to_owned(),
                parts: vec![name.clone()],
                n_parts,
            }),
        }
    }
    files
}

/// `model-00001-of-00003` is a part of `model`, one of 3.
fn split(whole: &str) -> Option<(&str, usize)> {
    let digits = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    let (rest, n_parts) = whole.rsplit_once("-of-")?;
    let (stem, part) = rest.rsplit_once('-')?;
    let n: usize = n_parts.parse().ok()?;
    (digits(n_parts) && digits(part) && n > 1).then_some((stem, n))
}

/// The shards that the text of an index names, each once.
pub(crate) fn shards(index: &[u8]) -> std::result::Result<Vec<String>, String> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let index: Index =
        serde_json::from_slice(index).map_err(|error| format!("is no index of tensors: {error}"))?;
    let mut shards: Vec<String> = index.weight_map.into_values().collect();
    shards.sort();
    shards.dedup();
    match shards.iter().find(|shard| !is_file_name(shard)) {
        Some(_) => Err("names shards that are no files of the repository".to_owned()),
        None => Ok(shards),
    }
}

/// Whether a name of the hub's list can be a file below a folder of the cache, on every system, and be printed. Windows drops
/// dots and spaces at the end of a name; without them no part is `.` or `..`.
pub(crate) fn is_file_name(name: &str) -> bool {
    name.len() <= 400
        && !name.contains(|c: char| c.is_control() || "\\:<>|?*\"".contains(c))
        && name
            .split('/')
            .all(|part| !part.is_empty() && !part.ends_with([' ', '.']))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(name: &str, names: &[&str]) -> Result<(Vec<String>, Weights)> {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        choose(&name.parse().unwrap(), &names).map(|choice| (choice.small, choice.weights))
    }

    fn files(names: &[&str]) -> Weights {
        Weights::Files(names.iter().map(|&name| name.to_owned()).collect())
    }

    #[test]
    fn a_folder_is_what_the_engine_reads() {
        let names = [
            "README.md",
            "config.json",
            "tokenizer.json",
            "tokenizer.model",
            "model.safetensors",
            "pytorch_model.bin",
            "x.gguf",
        ];
        let (small, weights) = chosen("a/b", &names).unwrap();
        assert_eq!(small, ["config.json", "tokenizer.json"]);
        assert_eq!(weights, files(&["model.safetensors"]));
        let (small, weights) = chosen(
            "a/b",
            &[
                "config.json",
                "tokenizer.model",
                INDEX,
                "model-00001-of-00002.safetensors",
            ],
        )
        .unwrap();
        assert_eq!(small, ["config.json", "tokenizer.model", INDEX]);
        assert_eq!(weights, Weights::Index(INDEX.to_owned()));
        assert!(matches!(
            chosen("a/b", &["config.json", "pytorch_model.bin"]),
            Err(Error::NoWeights { .. })
        ));
    }

    #[test]
    fn gguf_files_are_chosen_by_name_or_quantization() {
        let names = [
            "m-f16.gguf",
            "m-i2_s.gguf",
            "m-TQ2_0.gguf",
            "m-IQ2_BN.gguf",
            "m-IQ2_BN_R4.gguf",
            "m-Q2_0_g64.gguf",
            "sub/m-q8_0.gguf",
            "mmproj-f16.gguf",
        ];
        for (name, expected) in [
            ("a/b", "m-i2_s.gguf"),
            ("a/b:I2_S", "m-i2_s.gguf"),
            ("a/b:f16", "m-f16.gguf"),
            ("a/b:tq2_0", "m-TQ2_0.gguf"),
            ("a/b:iq2_bn", "m-IQ2_BN.gguf"),
            ("a/b:IQ2_BN_R4", "m-IQ2_BN_R4.gguf"),
            ("a/b:m-q8_0.gguf", "sub/m-q8_0.gguf"),
            ("a/b:sub/m-q8_0.gguf", "sub/m-q8_0.gguf"),
        ] {
            assert_eq!(chosen(name, &names).unwrap().1, files(&[expected]), "{name}");
        }
        for name in ["a/b:Q2_0", "a/b:2_0", "a/b:q5_k", "a/b:safetensors"] {
            assert!(
                matches!(chosen(name, &names), Err(Error::NoFile { files, .. }) if files.len() == 7),
                "{name}"
            );
        }
        assert!(
            matches!(chosen("a/b", &["x-q8_0.gguf", "x-f16.gguf"]), Err(Error::Ambiguous { files, .. }) if files.len() == 2)
        );
        assert!(matches!(
            chosen("a/b:f16", &["x-f16.gguf", "y-f16.gguf"]),
            Err(Error::Ambiguous { .. })
        ));
    }

    #[test]
    fn a_split_file_is_all_its_parts() {
        let names = [
            "m-i2_s-00002-of-00002.gguf",
            "m-i2_s-00001-of-00002.gguf",
            "m-f16.gguf",
        ];
        let both = files(&["m-i2_s-00001-of-00002.gguf", "m-i2_s-00002-of-00002.gguf"]);
        for name in ["a/b", "a/b:i2_s", "a/b:m-i2_s-00002-of-00002.gguf"] {
            assert_eq!(chosen(name, &names).unwrap().1, both, "{name}");
        }
        let error = chosen("a/b:i2_s", &names[1..]).unwrap_err().to_string();
        assert_eq!(error, "a/b: the split GGUF lacks m-i2_s-00002-of-00002.gguf");
    }

    #[test]
    fn names_that_lead_out_of_a_folder_are_no_names() {
        for name in [
            "../x",
            "/etc/passwd",
            "a/../b",
            "a//b",
            "a\\b",
            "C:x",
            ".",
            "a\u{1b}",
            "a/",
            "b.",
        ] {
            assert!(!is_file_name(name), "{name}");
        }
        assert!(is_file_name("1_Pooling/config.json") && is_file_name(".gitattributes"));
        assert!(shards(br#"{"weight_map": {"a": "../../x"}}"#).is_err());
        assert_eq!(
            shards(br#"{"weight_map": {"a": "y", "b": "x", "c": "y"}}"#).unwrap(),
            ["x", "y"]
        );
    }
}
