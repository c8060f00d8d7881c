//! generation_config.json: every field that changes tokens is obeyed or refused by name.

use bitnet_model::{Error, GenerationConfig, Result, Sampling};

fn read(json: &str) -> Result<GenerationConfig> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("generation_config.json"), json).unwrap();
    GenerationConfig::from_files(&folder.path().into())
}

fn sampling(json: &str) -> Sampling {
    read(json).unwrap().sampling
}

#[test]
fn a_models_own_settings_are_read() {
    let set = sampling(
        r#"{"do_sample": true, "temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1, "max_length": 4096}"#,
    );
    assert_eq!(
        (set.temperature, set.top_p, set.top_k, set.min_p),
        (0.6, 0.9, 40, 0.05)
    );
    assert_eq!((set.repeat_penalty, set.repeat_last_n), (1.1, usize::MAX));
    let greedy = sampling(r#"{"do_sample": false, "temperature": 0.6, "top_k": null}"#);
    assert_eq!((greedy.temperature, greedy.top_k), (0.0, 40));
    assert_eq!(read("{}").unwrap(), GenerationConfig::default());
    let none = tempfile::tempdir().unwrap();
    assert_eq!(Sampling::from_folder(none.path()).unwrap(), Sampling::default());
}

#[test]
fn rules_about_tokens_and_stop_strings_are_read() {
    let config = read(
        r#"{"suppress_tokens": [5, 6], "bad_words_ids": [[7], [1, 2], [9]], "eos_token_id": [9], "no_repeat_ngram_size": 3,
            "sequence_bias": [[[4], -1.5]], "stop_strings": ["a", "b"]}"#,
    )
    .unwrap();
    assert_eq!(config.sampling.bad_words, [vec![5], vec![6], vec![7], vec![1, 2]]);
    assert_eq!(config.sampling.no_repeat_ngram, 3);
    assert_eq!(config.sampling.logit_bias, [(4, -1.5)]);
    assert_eq!(
        (
            config.max_new_tokens,
            read("{\"max_new_tokens\": 7}").unwrap().max_new_tokens
        ),
        (None, Some(7))
    );
    assert_eq!(config.stop_strings, ["a", "b"]);
    assert_eq!(read(r#"{"stop_strings": "x"}"#).unwrap().stop_strings, ["x"]);
}

#[test]
fn wrong_types_are_refused_by_name() {
    for (key, values) in [
        ("do_sample", &["1", "\"true\""][..]),
        ("temperature", &["\"0.7\"", "-1", "[1]"]),
        ("top_k", &["\"50\"", "-1", "1.5"]),
        ("top_p", &["[0.9]", "2", "true"]),
        ("min_p", &["{}", "-0.5"]),
        ("repetition_penalty", &["\"1\"", "0"]),
        ("suppress_tokens", &["\"5\"", "[\"5\"]", "[1.5]"]),
        ("bad_words_ids", &["[5]", "5", "[[]]", "[[-2]]"]),
        ("no_repeat_ngram_size", &["-1", "\"2\""]),
        (
            "sequence_bias",
            &["[[[1, 2], 1.0]]", "{\"1\": 2}", "[[[1], \"a\"]]"],
        ),
        ("max_new_tokens", &["0", "-1", "\"5\""]),
        ("stop_strings", &["5", "[5]", "[\"\"]"]),
    ] {
        for value in values {
            let error = read(&format!("{{\"{key}\": {value}}}")).unwrap_err().to_string();
            let name = if key == "repetition_penalty" { "repe" } else { key };
            assert!(
                error.contains("generation_config.json: ") && error.replace('-', "_").contains(name),
                "{key}: {error}"
            );
        }
    }
}

#[test]
fn what_is_not_implemented_is_refused_unless_it_changes_nothing() {
    for json in [
        r#"{"num_beams": 1, "typical_p": 1.0, "epsilon_cutoff": 0.0, "guidance_scale": null, "begin_suppress_tokens": []}"#,
        r#"{"min_length": 0, "encoder_repetition_penalty": 1.0, "token_healing": false, "output_scores": true}"#,
    ] {
        assert_eq!(read(json).unwrap(), GenerationConfig::default(), "{json}");
    }
    for (key, value) in [
        ("num_beams", "4"),
        ("typical_p", "0.9"),
        ("penalty_alpha", "0.6"),
        ("min_new_tokens", "3"),
        ("forced_eos_token_id", "2"),
        ("begin_suppress_tokens", "[1]"),
        ("guidance_scale", "1.5"),
        ("token_healing", "true"),
    ] {
        let error = read(&format!("{{\"{key}\": {value}}}")).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
        assert!(error.to_string().contains(key), "{error}");
    }
}
