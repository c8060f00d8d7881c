//! The table, and command lines as they are typed.

use super::table::Here::{Is, IsOr, See};
use super::*;
use crate::settings;

fn translated(line: &str) -> Result<String, String> {
    let mut root = settings::command();
    root.build();
    let args = line.split(' ').map(OsString::from).collect();
    let out = translate(&root, args).map_err(|error| {
        let chain: Vec<String> = error.chain().map(ToString::to_string).collect();
        chain.concat()
    })?;
    let out: Vec<String> = out.into_iter().map(|arg| arg.into_string().unwrap()).collect();
    Ok(out.join(" "))
}

#[test]
fn flags_with_the_same_meaning_are_taken_over() {
    for (theirs, ours) in [
        (
            "bitnet generate -hf a/b -p -hf",
            "bitnet generate --model a/b -p -hf",
        ),
        (
            "bitnet chat -sys Hi -ctk f32",
            "bitnet chat --system Hi --kv-type f32",
        ),
        ("bitnet chat --cache-type-v=f32", "bitnet chat --kv-type=f32"),
        (
            "bitnet generate --top_k 5 --max_new_tokens 3",
            "bitnet generate --top-k 5 --n-predict 3",
        ),
        ("bitnet generate -fa on -fa -n 3", "bitnet generate -n 3"),
        (
            "bitnet generate --flash-attn=auto --jinja --mmap",
            "bitnet generate",
        ),
        ("bitnet chat -cnv -r User:", "bitnet chat --stop User:"),
        ("bitnet generate -no-cnv -p x", "bitnet generate -p x"),
        ("bitnet generate -n -1 -- -ngl", "bitnet generate -n -1 -- -ngl"),
        (
            "bitnet bench model -ub 5 -p 4,5",
            "bitnet bench model --batch-size 5 -p 4,5",
        ),
        (
            "bitnet bench -m x -ub 5",
            "bitnet bench model -m x --batch-size 5",
        ),
        ("bitnet bench --help", "bitnet bench --help"),
        (
            "bitnet chat -threads 4 -seed 7",
            "bitnet chat --threads 4 --seed 7",
        ),
        (
            "bitnet generate -qi -n5 -mfolder",
            "bitnet generate -qi -n5 -mfolder",
        ),
        (
            "bitnet serve -np 4 -to 5 -cb --metrics -ctk f32 -a x",
            "bitnet serve --parallel 4 --request-timeout 5 --kv-type f32 -a x",
        ),
    ] {
        assert_eq!(translated(theirs).as_deref(), Ok(ours), "{theirs}");
    }
}

#[test]
fn every_other_flag_is_refused_by_its_name() {
    for (names, here) in TABLE {
        for name in names.split_whitespace() {
            for command in ["generate", "chat", "perplexity", "bench model"] {
                let result = translated(&format!("bitnet {command} {name} x"));
                match (here, result) {
                    (_, Err(message)) => assert!(message.contains(name), "{command} {name}: {message}"),
                    (See(_), Ok(line)) => {
                        // Where it is a flag of the command itself, it stays as it is.
                        assert!(
                            line.split(' ').any(|word| word == name)
                                || name.ends_with("cnv")
                                || name == "--conversation",
                            "{command} {name}: {line}"
                        );
                    }
                    (_, Ok(_)) => {}
                }
            }
        }
    }
    for (line, name) in [
        ("bitnet generate -n -ngl 99", "-ngl"),
        ("bitnet generate -hx", "-hx"),
        ("bitnet generate -nope", "-nope"),
        ("bitnet generate -fa off", "-fa"),
        ("bitnet generate --fit=off", "--fit"),
        ("bitnet chat --top_n_sigma 1", "--top_n_sigma"),
        ("bitnet run x", "run"),
        ("bitnet llama-cli x", "llama-cli"),
    ] {
        let message = translated(line).unwrap_err();
        assert!(message.contains(name), "{line}: {message}");
    }
}

#[test]
fn the_table_names_flags_that_exist_and_each_flag_once() {
    let mut root = settings::command();
    root.build();
    let [generate, serve] = ["generate", "serve"].map(|name| root.find_subcommand(name).unwrap());
    let mut seen = std::collections::BTreeSet::new();
    for (names, here) in TABLE {
        for name in names.split_whitespace() {
            assert!(name.starts_with('-') && seen.insert(name), "{name} twice");
        }
        match here {
            Is(ours) => assert!(find(generate, ours).is_some(), "{ours}"),
            IsOr(ours, _) => assert!(find(serve, ours).is_some(), "{ours}"),
            _ => {}
        }
    }
}
