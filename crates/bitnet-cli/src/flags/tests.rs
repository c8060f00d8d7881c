//! The table, and command lines as they are typed.

use super::table::Here::{Is, IsOr, See};
use super::*;
use crate::settings;

fn translated(line: &str) -> Result<String, String> {
    let mut root = settings::command();
    root.build();
    let args = line.split(' ').map(OsString::from).collect();
    let out = translate(&root, args).map_err(|error| {
        let hints: Vec<String> = error
            .chain()
            .filter_map(crate::failure::hint_of)
            .map(str::to_owned)
            .collect();
        let chain: Vec<String> = error.chain().map(ToString::to_string).collect();
        [chain, hints].concat().join("\n")
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
            "bitnet generate -qi -n5 -c4k -s-1 -m/folder",
            "bitnet generate -qi -n5 -c4k -s-1 -m/folder",
        ),
        (
            "bitnet generate -jinja -mmap -if",
            "bitnet generate --interactive",
        ),
        ("bitnet chat -i --interactive -t -1 -n -2", "bitnet chat -n -2"),
        (
            "bitnet generate -b 2048 -n 1 -ub 512",
            "bitnet generate -n 1 --batch-size 512",
        ),
        (
            "bitnet generate --ubatch-size=512 --batch-size=2048",
            "bitnet generate --batch-size=512",
        ),
        ("bitnet chat -ctk q8_0 -ctv q8_0", "bitnet chat --kv-type int8"),
        ("bitnet chat -ctk=f16", "bitnet chat --kv-type=bf16"),
        (
            "bitnet serve -np -1 --enable-auto-tool-choice --enable-chunked-prefill",
            "bitnet serve",
        ),
        (
            "bitnet llama-bench -m x -npp 4 -ntg 5 -npl 6",
            "bitnet bench model -m x --n-prompt 4 --n-gen 5 --batch 6",
        ),
        ("bitnet llama-tokenize -p x", "bitnet tokenize -p x"),
        ("bitnet llama-embedding -p x", "bitnet embed -p x"),
        ("bitnet convert x --outfile y", "bitnet convert x --out y"),
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
                    // A switch leaves its neighbor alone.
                    (_, Err(message)) if message.contains("no argument `x`") => {
                        assert!(!matches!(here, See(_)) || name.ends_with("cnv") || name == "--conversation");
                    }
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
        ("bitnet generate -perf", "-perf"),
        ("bitnet generate -ngl99", "-ngl99"),
        ("bitnet generate -np4", "-np4"),
        ("bitnet generate -agent -p x", "-agent"),
        ("bitnet generate -pHello", "write -p 'Hello'"),
        ("bitnet generate -mlock", "weights are read"),
        ("bitnet generate -lcs x", "second model"),
        ("bitnet generate -ptc 1", "-ptc"),
        ("bitnet generate -flash-attn off", "-flash-attn"),
        ("bitnet generate -ins", "bitnet chat"),
        ("bitnet chat -ctk q8_0 -ctv f16", "--kv-type"),
        ("bitnet serve --temp 0", "each request says"),
        ("bitnet serve --seed 1", "each request says"),
        ("bitnet inspect --temp 0", "`bitnet chat`"),
        ("bitnet serve --embeddings", "bitnet embed"),
        ("bitnet serve --log-file x", "2> FILE"),
        ("bitnet bench model -nope 4", "`bitnet bench model --help`"),
        ("bitnet generate model.gguf", "-m names the model"),
        ("bitnet serve model.gguf", "-m names the model"),
        ("bitnet bench model.gguf", "bitnet bench model -m"),
        ("bitnet models", "bitnet list"),
        ("bitnet run-batch x", "bitnet batch"),
        ("bitnet delete x", "bitnet rm"),
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
    let [generate, bench] = ["generate", "bench"].map(|name| root.find_subcommand(name).unwrap());
    let mut seen = std::collections::BTreeSet::new();
    for (names, here) in TABLE {
        for name in names.split_whitespace() {
            assert!(name.starts_with('-') && seen.insert(name), "{name} twice");
        }
        match here {
            Is(ours) => assert!(find(generate, ours).is_some(), "{ours}"),
            IsOr(ours, _) => {
                let all = root.get_subcommands().chain(bench.get_subcommands());
                assert!(
                    all.into_iter().any(|command| find(command, ours).is_some()),
                    "{ours}"
                );
            }
            _ => {}
        }
    }
}
