//! Token ids, rendered conversations and decoded text, as transformers makes them (`tests/oracle/README.md`).

use std::path::{Path, PathBuf};

use bitnet_model::{ChatTemplate, Detokenizer, Message, SpecialTokens, Tokenizer};
use proptest::prelude::*;
use serde_json::Value;

fn folders() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oracle");
    ["bitnet-bf16", "bitnet-packed", "llama-bitnet", "odd-shape"]
        .map(|name| root.join(name))
        .into()
}

fn tokenizer(folder: &Path) -> Tokenizer {
    Tokenizer::from_folder(folder, None, &[]).unwrap()
}

fn prompts(folder: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(folder.join("expected.json")).unwrap();
    let expected: Value = serde_json::from_str(&text).unwrap();
    expected["prompts"].as_array().unwrap().clone()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn ids_equal_those_of_transformers() {
    for folder in folders() {
        let tokenizer = tokenizer(&folder);
        let bos = tokenizer.bos().unwrap();
        for prompt in prompts(&folder) {
            let (text, expected) = (prompt["text"].as_str().unwrap(), ids(&prompt["ids"]));
            let special = prompt["add_special_tokens"].as_bool().unwrap();
            let found = if special {
                tokenizer.encode(text)
            } else {
                tokenizer.encode_plain(text)
            };
            assert_eq!(
                found.unwrap(),
                expected,
                "{} {}",
                folder.display(),
                prompt["name"]
            );

            let found = tokenizer.encode_prompt(text).unwrap();
            let without = |ids: &[u32]| ids.strip_prefix(&[bos]).unwrap_or(ids).to_vec();
            assert_eq!(found[0], bos);
            assert_eq!(found[1..], without(&expected), "one beginning-of-sequence token");
        }
    }
}

#[test]
fn the_length_of_a_text_bounds_its_tokens() {
    for folder in folders() {
        let tokenizer = tokenizer(&folder);
        assert_eq!(tokenizer.fewest_tokens("short"), 0);
        let bos = tokenizer
            .bos()
            .and_then(|id| tokenizer.id_to_token(id))
            .unwrap_or_default();
        for piece in [" the quick brown fox\u{1f600}\0", "<|eot_id|>"] {
            let text = format!("{bos}{bos}{}", piece.repeat((256 << 10) / piece.len() + 2));
            let (fewest, ids) = (
                tokenizer.fewest_tokens(&text),
                tokenizer.encode_prompt(&text).unwrap(),
            );
            assert!(fewest <= ids.len(), "{}: {piece:?}: {fewest}", folder.display());
            assert!(fewest > 1000, "{}: {piece:?}: {fewest}", folder.display());
        }
        assert_eq!(tokenizer.fewest_tokens(&bos.repeat(256 << 10)), 0);
    }
}

#[test]
fn conversations_render_as_in_transformers() {
    let mut rendered = 0;
    for folder in folders() {
        let template = ChatTemplate::from_folder(&folder, &tokenizer(&folder))
            .unwrap()
            .unwrap();
        assert!(!template.is_built_in());
        for prompt in prompts(&folder).iter().filter(|p| p["kind"] == "chat") {
            let messages: Vec<Message> = prompt["messages"]
                .as_array()
                .unwrap()
                .iter()
                .map(|m| Message::new(m["role"].as_str().unwrap(), m["content"].as_str().unwrap()))
                .collect();
            assert_eq!(
                template.render(&messages).unwrap(),
                prompt["text"].as_str().unwrap()
            );
            rendered += 1;
        }
    }
    assert_eq!(rendered, 8);
}

/// The text of `ids`, streamed.
fn stream(tokenizer: &Tokenizer, special: SpecialTokens, ids: &[u32]) -> String {
    let mut detokenizer = Detokenizer::new(tokenizer, special);
    let mut text: String = ids.iter().map(|&id| detokenizer.push(id).unwrap()).collect();
    text.push_str(&detokenizer.finish().unwrap());
    text
}

#[test]
fn streamed_text_equals_that_of_transformers() {
    for folder in folders() {
        let tokenizer = tokenizer(&folder);
        for prompt in prompts(&folder) {
            let (ids, text) = (
                ids(&prompt["f32"]["greedy_ids"]),
                prompt["f32"]["greedy_text"].as_str().unwrap(),
            );
            assert_eq!(tokenizer.decode(&ids).unwrap(), text);
            assert_eq!(stream(&tokenizer, SpecialTokens::Show, &ids), text);
        }
    }
}

/// A vocabulary in the manner of SentencePiece: spaces as ▁, unknown characters as byte tokens.
fn byte_fallback() -> (tempfile::TempDir, Tokenizer) {
    let mut vocab = serde_json::Map::new();
    for token in ["<s>", "▁", "▁a", "b", "春", "▁▁"] {
        vocab.insert(token.to_owned(), vocab.len().into());
    }
    for byte in 0..=255u8 {
        vocab.insert(format!("<0x{byte:02X}>"), vocab.len().into());
    }
    let json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [{"id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
        "normalizer": null, "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocab, "merges": []}
    });
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
    let tokenizer = tokenizer(folder.path());
    (folder, tokenizer)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn streaming_equals_decoding_at_once(picks in prop::collection::vec(any::<prop::sample::Index>(), 0..40)) {
        let folders = folders();
        let (_folder, fallback) = byte_fallback();
        // With ids past the vocabulary: rows of the embedding that no token names.
        for (tokenizer, n_ids) in [(tokenizer(&folders[0]), 1030), (tokenizer(&folders[3]), 777), (fallback, 262)] {
            let ids: Vec<u32> = picks.iter().map(|pick| pick.index(n_ids) as u32).collect();
            let shown: Vec<u32> = ids.iter().copied().filter(|&id| !tokenizer.is_special(id)).collect();
            for (special, ids) in [(SpecialTokens::Show, &ids), (SpecialTokens::Hide, &shown)] {
                let whole = tokenizer.decode(ids).unwrap();
                // A run of byte tokens that turns out to be no UTF-8 was shown as far as it was.
                if n_ids != 262 || !whole.contains('\u{fffd}') {
                    prop_assert_eq!(stream(&tokenizer, special, ids), whole);
                }
            }
        }
    }
}

#[test]
fn byte_tokens_become_characters_only_when_whole() {
    let (_folder, tokenizer) = byte_fallback();
    let byte = |b: u32| 6 + b;
    let mut detokenizer = Detokenizer::new(&tokenizer, SpecialTokens::Hide);
    let pieces: Vec<String> = [2, 2, byte(0xe6), byte(0x98), byte(0xa5), 3, byte(0xff)]
        .map(|id| detokenizer.push(id).unwrap())
        .into();
    assert_eq!(pieces, ["a", " a", "", "", "春", "b", "\u{fffd}"]);
    assert_eq!(detokenizer.finish().unwrap(), "");
}

/// A model may write nothing but byte tokens, or one broken character after the other.
#[test]
fn byte_tokens_and_broken_characters_are_not_held_back() {
    let (_folder, tokenizer) = byte_fallback();
    let byte = |b: u8| 6 + u32::from(b);
    let mut detokenizer = Detokenizer::new(&tokenizer, SpecialTokens::Hide);
    let mut text = String::new();
    for (n, &b) in " so, 春, \u{fffd}".repeat(500).as_bytes().iter().enumerate() {
        text.push_str(&detokenizer.push(byte(b)).unwrap());
        assert!(text.len() + 4 > n, "at most a character is held back");
    }
    // The decoder leaves out the space at the very beginning.
    assert_eq!(
        text + &detokenizer.finish().unwrap(),
        " so, 春, \u{fffd}".repeat(500)[1..]
    );

    // What is no UTF-8 does not take what follows it along.
    let mut detokenizer = Detokenizer::new(&tokenizer, SpecialTokens::Hide);
    let pieces =
        [byte(b'a'), byte(0xe6), byte(b'b'), 3, byte(0xff), 3].map(|id| detokenizer.push(id).unwrap());
    assert_eq!(pieces, ["a", "", "\u{fffd}b", "b", "\u{fffd}", "b"]);
    assert_eq!(detokenizer.finish().unwrap(), "");
}

/// A tokenizer of so many tokens `a0`, `a1` ... with parts that a test chooses.
fn small(parts: &Value, config: Option<&Value>) -> bitnet_model::Result<Tokenizer> {
    let folder = tempfile::tempdir().unwrap();
    let mut json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null, "pre_tokenizer": null,
        "post_processor": null, "decoder": null,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": {"a": 0, "b": 1, "ab": 2, "abab": 3, "\u{fffd}": 4, "▁": 5, "<s>": 6, "</s>": 7, ".": 8},
            "merges": [["a", "b"], ["ab", "ab"]]}
    });
    for (name, part) in parts.as_object().unwrap() {
        match &name[..] {
            "dropout" => json["model"]["dropout"] = part.clone(),
            _ => json[name] = part.clone(),
        }
    }
    std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
    if let Some(config) = config {
        std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    }
    Tokenizer::from_folder(folder.path(), None, &[])
}

#[test]
fn a_token_that_is_the_replacement_character_is_shown() {
    let decoder = serde_json::json!({"decoder": {"type": "Sequence", "decoders": [{"type": "Fuse"}]}});
    let tokenizer = small(&decoder, None).unwrap();
    let mut detokenizer = Detokenizer::new(&tokenizer, SpecialTokens::Hide);
    let mut text = String::new();
    for n in 0..200 {
        text.push_str(&detokenizer.push(4).unwrap());
        assert_eq!(text.chars().count(), n);
    }
    assert_eq!(text + &detokenizer.finish().unwrap(), "\u{fffd}".repeat(200));
}

/// What was returned cannot be taken back; a decoder that changes its mind must not lose what follows.
#[test]
fn decoders_that_change_what_was_said_lose_nothing() {
    let decoder = serde_json::json!({"decoder": {"type": "Sequence", "decoders": [
        {"type": "Fuse"}, {"type": "Replace", "pattern": {"String": "ab"}, "content": "X"}]}});
    let tokenizer = small(&decoder, None).unwrap();
    assert_eq!(stream(&tokenizer, SpecialTokens::Hide, &[0, 1, 8, 0, 0]), "aX.aa");
}

#[test]
fn the_same_text_has_the_same_ids_in_spite_of_dropout() {
    let tokenizer = small(&serde_json::json!({"dropout": 0.5}), None).unwrap();
    for _ in 0..20 {
        assert_eq!(tokenizer.encode_plain("ababab").unwrap(), [3, 2]);
    }
}

#[test]
fn normalizers_and_decoders_that_grow_without_bound_are_refused() {
    let double = serde_json::json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
    let doubles = |n: usize| serde_json::json!({"type": "Sequence", "normalizers": vec![double.clone(); n]});
    let error = |parts: Value| small(&parts, None).err().unwrap().to_string();
    assert!(error(serde_json::json!({"normalizer": doubles(40)})).contains("normalizers can make a text"));
    let decoder = serde_json::json!({"type": "Sequence", "decoders": vec![double.clone(); 40]});
    assert!(error(serde_json::json!({"decoder": decoder})).contains("decoders can make a text"));
    let twice = serde_json::json!({"type": "TemplateProcessing", "single": vec![serde_json::json!({"Sequence": {"id": "A", "type_id": 0}}); 2],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}], "special_tokens": {}});
    assert!(error(serde_json::json!({"post_processor": twice})).contains("repeats the text"));

    // What a text becomes counts, not what it might have become.
    let tokenizer = small(&serde_json::json!({"normalizer": doubles(19)}), None).unwrap();
    assert_eq!(tokenizer.encode_plain(&"b".repeat(1000)).unwrap().len(), 1000);
    let error = tokenizer.encode_plain(&"a".repeat(1000)).unwrap_err().to_string();
    assert!(error.contains("this text of 1000 bytes"), "{error}");
}

/// As transformers 5 does: tokenizer_config.json's word on added tokens holds.
#[test]
fn tokenizer_config_adds_and_changes_tokens() {
    let token = |content: &str, special: bool, strip: bool| serde_json::json!({"content": content, "special": special, "lstrip": strip, "rstrip": strip, "single_word": false, "normalized": false});
    let parts = serde_json::json!({"added_tokens": [{"id": 6, "content": "<s>", "special": false, "lstrip": false, "rstrip": false,
        "single_word": false, "normalized": false}]});
    let config = serde_json::json!({
        "added_tokens_decoder": {"6": token("<s>", true, false), "9": token("<new>", false, false), "10": token("<sp>", true, true)},
        "eos_token": "</s>"
    });
    let tokenizer = small(&parts, Some(&config)).unwrap();
    assert_eq!(tokenizer.encode_plain("<s>a<new>b").unwrap(), [6, 0, 9, 1]);
    assert!(tokenizer.is_special(6) && tokenizer.is_special(10) && !tokenizer.is_special(9));
    assert_eq!(tokenizer.encode_plain("a<sp>b</s>").unwrap(), [0, 10, 1, 7]);
    assert!(tokenizer.is_special(7), "named as eos_token alone");
    assert_eq!(tokenizer.end_ids(), [7]);

    let error = |config: Value| small(&parts, Some(&config)).err().unwrap().to_string();
    let elsewhere = serde_json::json!({"added_tokens_decoder": {"12": token("<new>", true, false)}});
    assert!(error(elsewhere).contains("added_tokens_decoder of tokenizer_config.json as 12"));
    assert!(
        error(serde_json::json!({"added_tokens_decoder": {"x": token("<new>", true, false)}}))
            .contains("expected token ids")
    );
    assert!(error(serde_json::json!({"added_tokens_decoder": [1]})).contains("added_tokens_decoder is [1]"));
    assert!(error(serde_json::json!({"bos_token": 5})).contains("bos_token is 5"));
    assert!(error(serde_json::json!({"add_bos_token": "yes"})).contains("add_bos_token is \"yes\""));
}

#[test]
fn legacy_decides_where_spaces_are_put_before_text() {
    let parts = serde_json::json!({
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "added_tokens": [{"id": 6, "content": "<s>", "special": true, "lstrip": false, "rstrip": false, "single_word": false, "normalized": false}]
    });
    let ids = |legacy: Value| {
        let config = serde_json::json!({"tokenizer_class": "LlamaTokenizerFast", "legacy": legacy});
        small(&parts, Some(&config))
            .unwrap()
            .encode_plain("a b<s>a")
            .unwrap()
    };
    assert_eq!(ids(Value::Null), [5, 0, 5, 1, 6, 5, 0]);
    assert_eq!(ids(Value::Bool(true)), [5, 0, 5, 1, 6, 5, 0]);
    assert_eq!(ids(Value::Bool(false)), [5, 0, 5, 1, 6, 0]);
}

#[test]
fn a_rendered_conversation_gets_no_end_token() {
    let special = |id: u32, token: &str| serde_json::json!({"id": token, "ids": [id], "tokens": [token]});
    let parts = serde_json::json!({"post_processor": {"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": "</s>", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": special(6, "<s>"), "</s>": special(7, "</s>")}}});
    let config = serde_json::json!({"bos_token": "<s>", "eos_token": "</s>"});
    let tokenizer = small(&parts, Some(&config)).unwrap();
    assert_eq!(tokenizer.encode_prompt("ab").unwrap(), [6, 2, 7]);
    assert_eq!(tokenizer.encode_rendered("ab").unwrap(), [6, 2]);
    assert_eq!(tokenizer.encode_rendered("<s>ab").unwrap(), [6, 2]);
}

/// Copies the text files of the first oracle folder, with one file changed or (`None`) removed.
fn folder_with(name: &str, content: Option<&str>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
    ] {
        std::fs::copy(folders()[0].join(file), folder.path().join(file)).unwrap();
    }
    match content {
        Some(content) => std::fs::write(folder.path().join(name), content).unwrap(),
        None => std::fs::remove_file(folder.path().join(name)).unwrap(),
    }
    folder
}

#[test]
fn a_template_file_wins_and_a_missing_template_is_built_in() {
    let hello = [Message::user("Hello")];
    let folder = folder_with("chat_template.jinja", Some("<{{ messages[0].content }}>\n"));
    let own = ChatTemplate::from_folder(folder.path(), &tokenizer(folder.path()))
        .unwrap()
        .unwrap();
    assert_eq!(own.render(&hello).unwrap(), "<Hello>");

    let folder = folder_with(
        "tokenizer_config.json",
        Some(r#"{"bos_token": {"content": "<|begin_of_text|>"}}"#),
    );
    let built_in = ChatTemplate::from_folder(folder.path(), &tokenizer(folder.path()))
        .unwrap()
        .unwrap();
    assert!(built_in.is_built_in());
    assert_eq!(
        built_in.render(&hello).unwrap(),
        "User: Hello<|eot_id|>Assistant: "
    );

    let named =
        r#"{"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]}"#;
    let folder = folder_with("tokenizer_config.json", Some(named));
    let template = ChatTemplate::from_folder(folder.path(), &tokenizer(folder.path()))
        .unwrap()
        .unwrap();
    assert_eq!(template.render(&hello).unwrap(), "d");

    let folder = folder_with("tokenizer_config.json", Some(r#"{"chat_template": 3}"#));
    let error = ChatTemplate::from_folder(folder.path(), &tokenizer(folder.path())).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("tokenizer_config.json: chat_template is neither"),
        "{error}"
    );

    let folder = folder_with("tokenizer_config.json", None);
    std::fs::write(folder.path().join("config.json"), r#"{"model_type": "llama"}"#).unwrap();
    assert!(
        ChatTemplate::from_folder(folder.path(), &tokenizer(folder.path()))
            .unwrap()
            .is_none()
    );
}

#[test]
fn prompts_begin_as_the_model_wants() {
    let begins = |name: &str, content: Option<&str>, eos: &[u32]| {
        let folder = folder_with(name, content);
        std::fs::remove_file(folder.path().join("special_tokens_map.json")).unwrap();
        Tokenizer::from_folder(folder.path(), Some(7), eos).unwrap().bos()
    };
    let config = "tokenizer_config.json";
    assert_eq!(
        begins(config, Some(r#"{"bos_token": "<|end_of_text|>"}"#), &[]),
        Some(1009)
    );
    assert_eq!(
        begins(
            config,
            Some(r#"{"bos_token": "<|eot_id|>", "add_bos_token": false}"#),
            &[]
        ),
        None
    );
    assert_eq!(begins(config, Some("{}"), &[]), None);
    // Without that file config.json decides; Falcon's bos is its eos and begins nothing.
    assert_eq!(begins(config, None, &[]), Some(7));
    assert_eq!(begins(config, None, &[7]), None);
}

#[test]
fn malformed_files_are_errors_that_name_them() {
    for content in [
        "",
        "{}",
        "[]",
        "{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0}, \"merges\": [\"a b\"]}}",
    ] {
        let folder = folder_with("tokenizer.json", Some(content));
        let error = Tokenizer::from_folder(folder.path(), None, &[]).err().unwrap();
        assert!(error.to_string().contains("tokenizer.json: "), "{error}");
    }
    let whole = std::fs::read_to_string(folders()[0].join("tokenizer.json")).unwrap();
    for cut in (0..whole.len())
        .step_by(997)
        .filter(|&cut| whole.is_char_boundary(cut))
    {
        let folder = folder_with("tokenizer.json", Some(&whole[..cut]));
        let error = Tokenizer::from_folder(folder.path(), None, &[]).err().unwrap();
        assert!(
            error
                .to_string()
                .contains("tokenizer.json: not valid JSON: EOF while parsing"),
            "{error}"
        );
    }
    let folder = folder_with("tokenizer_config.json", Some("[1]"));
    let error = Tokenizer::from_folder(folder.path(), None, &[]).err().unwrap();
    assert!(
        error
            .to_string()
            .ends_with("tokenizer_config.json: is not a JSON object"),
        "{error}"
    );
    let folder = folder_with("tokenizer.json", None);
    let error = Tokenizer::from_folder(folder.path(), None, &[]).err().unwrap();
    assert!(
        error.to_string().contains("tokenizer.json: no such file"),
        "{error}"
    );
}
