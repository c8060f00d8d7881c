//! Flags of the programs that people come from: llama.cpp and its wrappers, transformers, ollama, vLLM.
//!
//! A flag that has the same meaning here is taken over; any other one is refused by its own name, with its counterpart. It
//! must be done before the flags are read: clap takes `-ngl` for `-n gl` and `-hf` for `-h -f`.

use std::ffi::OsString;

use clap::{Arg, ArgAction, Command};

use crate::failure::usage;
use crate::terminal::say;

/// What becomes of a flag of another program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Here {
    /// It is this flag; its value, if it has one, stays.
    Is(&'static str),
    /// It asks for what happens anyway: it is dropped, with a value where it has one.
    Anyway,
    /// It asks for what happens anyway when it has one of these values.
    AnywayWith(&'static [&'static str], &'static str),
    /// It is refused, and this is the counterpart, or why there is none.
    See(&'static str),
}
use Here::{Anyway, AnywayWith, Is, See};

const ON: &[&str] = &["on", "auto", "1", "true"];
const DEVICE: &str = "the whole model runs on one device: --device cuda, cuda:N or cpu";
const LOADING: &str = "weights are read into memory once; there is nothing to choose";
const AFFINITY: &str =
    "threads are placed by the system; `taskset` or `numactl` before the command place them, -t counts them";
const SAMPLER: &str =
    "there is no such sampler; --temp, --top-k, --top-p, --min-p and the penalties choose tokens";
const GRAMMAR: &str = "output cannot be constrained yet; ask for the form in the prompt, and --stop ends it";
const DRAFT: &str = "there is no speculative decoding with a second model";
const ROPE: &str = "positions are computed as config.json says; -c sets the context";
const LOGS: &str = "there is no log; -q turns the statistics on stderr off";
const MODEL: &str = "-m names a model: its folder, its GGUF file, or owner/name:file of the Hugging Face Hub";
const ADAPTER: &str = "adapters are not supported; merge it into the weights, then convert them";
const MEDIA: &str = "models here read and write text alone";
const EXPERTS: &str = "no supported model has experts";
const REASONING: &str =
    "text between thinking tags is text like any other; a template of --chat-template-file may leave it out";
const CHAT: &str = "`bitnet chat` holds a conversation, and `bitnet generate --chat-format` answers once";
const SYSTEM_FILE: &str = "--system takes a text: --system \"$(cat FILE)\"";
const TEMPLATE: &str = "--chat-template-file names a file with a Jinja template";
const SERVER: &str = "it is a flag of a server";
const CACHE: &str = "a conversation keeps its keys and values; there is nothing to choose";

/// The flags of llama.cpp's programs (cli, completion, server, bench, perplexity) that are not flags here, of the wrappers
/// of bitnet.cpp, of transformers, ollama and vLLM. Names that are flags here need no line.
const TABLE: &[(&[&str], Here)] = &[
    // Which model.
    (
        &["-hf", "-hfr", "--hf-repo", "--model-id", "--model-name-or-path"],
        Is("--model"),
    ),
    (
        &["-hff", "--hf-file", "-mu", "--model-url", "-dr", "--docker-repo"],
        See(MODEL),
    ),
    (
        &["-hft", "--hf-token"],
        See("the variable HF_TOKEN holds the token"),
    ),
    (
        &["-cl", "--cache-list"],
        See("`bitnet list` shows what is in the cache"),
    ),
    (
        &["--offline"],
        See("the variable HF_HUB_OFFLINE=1 forbids connections"),
    ),
    (
        &[
            "--lora",
            "--lora-scaled",
            "--lora-init-without-apply",
            "--lora-base",
            "--control-vector",
            "--control-vector-scaled",
            "--control-vector-layer-range",
        ],
        See(ADAPTER),
    ),
    (
        &[
            "-mm",
            "--mmproj",
            "-mmu",
            "--mmproj-url",
            "--mmproj-auto",
            "--no-mmproj",
            "--no-mmproj-auto",
            "--mmproj-offload",
            "--no-mmproj-offload",
            "-mmdev",
            "--mmproj-device",
            "--image",
            "--audio",
            "--video",
            "--image-min-tokens",
            "--image-max-tokens",
        ],
        See(MEDIA),
    ),
    (
        &["--override-kv", "--check-tensors"],
        See("`bitnet inspect --verify` checks a model; its own files describe it"),
    ),
    (
        &[
            "--gpt-oss-20b-default",
            "--gpt-oss-120b-default",
            "--vision-gemma-4b-default",
            "--vision-gemma-12b-default",
        ],
        See(MODEL),
    ),
    // Where it runs.
    (&["-ngl", "--gpu-layers", "--n-gpu-layers"], See(DEVICE)),
    (&["-dev"], Is("--device")),
    (&["-mg", "--main-gpu"], See("--device cuda:N names a GPU")),
    (
        &[
            "-sm",
            "--split-mode",
            "-ts",
            "--tensor-split",
            "--tensor-parallel-size",
            "--rpc",
            "-rpc",
            "-ot",
            "--override-tensor",
            "--device-map",
            "--no-host",
            "--gpu-memory-utilization",
        ],
        See(DEVICE),
    ),
    (&["-kvo", "--kv-offload", "--op-offload"], Anyway),
    (
        &["-nkvo", "--no-kv-offload", "--no-op-offload", "-nopo"],
        See(DEVICE),
    ),
    (&["-cmoe", "--cpu-moe", "-ncmoe", "--n-cpu-moe"], See(EXPERTS)),
    (
        &["-fit", "--fit"],
        AnywayWith(ON, "-c sets the context; what does not fit is refused"),
    ),
    (
        &["-fitt", "--fit-target", "-fitc", "--fit-ctx"],
        See("-c sets the context; what does not fit is refused"),
    ),
    (
        &["--list-devices"],
        See("`bitnet doctor` lists the devices and tests them"),
    ),
    (
        &["-tb", "--threads-batch"],
        See("-t is for prompts and answers alike"),
    ),
    (
        &[
            "-C",
            "--cpu-mask",
            "-Cr",
            "--cpu-range",
            "--cpu-strict",
            "--prio",
            "--poll",
            "-Cb",
            "--cpu-mask-batch",
            "-Crb",
            "--cpu-range-batch",
            "--cpu-strict-batch",
            "--prio-batch",
            "--poll-batch",
            "--numa",
        ],
        See(AFFINITY),
    ),
    (
        &[
            "--mlock",
            "--no-mmap",
            "-lm",
            "--load-mode",
            "-dio",
            "--direct-io",
            "-lzm",
            "--lazy-mode",
            "--low-cpu-mem-usage",
        ],
        See(LOADING),
    ),
    (
        &["--mmap", "-ndio", "--no-direct-io", "--repack", "--warmup"],
        Anyway,
    ),
    (
        &["-nr", "--no-repack"],
        See("weights always take the layout of the device"),
    ),
    (
        &["--no-warmup"],
        See("the first run of each test warms up and is not counted"),
    ),
    (
        &[
            "--dtype",
            "--torch-dtype",
            "--load-in-4bit",
            "--load-in-8bit",
            "--quantization",
            "-q4",
            "--attn-implementation",
        ],
        See("weights stay as they are trained; --lm-head int8 and --kv-type change head and cache"),
    ),
    (
        &["--trust-remote-code"],
        See("no code of a model's folder is ever run"),
    ),
    // Context and batches.
    (&["-ub", "--ubatch-size"], Is("--batch-size")),
    (&["--max-model-length", "--num-ctx", "--ctx"], Is("--ctx-size")),
    (
        &[
            "--keep",
            "--context-shift",
            "--no-context-shift",
            "--swa-full",
            "-gan",
            "--grp-attn-n",
            "-gaw",
            "--grp-attn-w",
        ],
        See("a chat whose context is full forgets its oldest messages and keeps the system message"),
    ),
    (
        &[
            "-ctxcp",
            "--ctx-checkpoints",
            "--swa-checkpoints",
            "-cram",
            "--cache-ram",
            "--cache-prompt",
            "--no-cache-prompt",
            "--cache-reuse",
            "-dt",
            "--defrag-thold",
            "--prompt-cache",
            "--prompt-cache-all",
            "--prompt-cache-ro",
            "--slot-save-path",
            "-kvu",
            "--kv-unified",
        ],
        See(CACHE),
    ),
    (
        &["-ctk", "--cache-type-k", "-ctv", "--cache-type-v"],
        Is("--kv-type"),
    ),
    (
        &[
            "-ctkd",
            "--cache-type-k-draft",
            "--spec-draft-type-k",
            "-ctvd",
            "--cache-type-v-draft",
            "--spec-draft-type-v",
        ],
        See(DRAFT),
    ),
    (
        &["-fa", "--flash-attn"],
        AnywayWith(
            ON,
            "attention never writes its scores to memory; there is no other one",
        ),
    ),
    (
        &[
            "-np",
            "--parallel",
            "--max-num-seqs",
            "-ns",
            "--sequences",
            "-cb",
            "--cont-batching",
            "-nocb",
            "--no-cont-batching",
        ],
        See("one prompt is answered at a time; `bitnet bench model -b` times several side by side"),
    ),
    (
        &[
            "--rope-scaling",
            "--rope-scale",
            "--rope-freq-base",
            "--rope-freq-scale",
            "--yarn-orig-ctx",
            "--yarn-ext-factor",
            "--yarn-attn-factor",
            "--yarn-beta-slow",
            "--yarn-beta-fast",
        ],
        See(ROPE),
    ),
    // Prompt and conversation.
    (&["-sys", "--system-prompt", "--sys"], Is("--system")),
    (&["-sysf", "--system-prompt-file"], See(SYSTEM_FILE)),
    (
        &["-bf", "--binary-file"],
        See("-f reads a file of UTF-8 text, and --prompt-ids takes tokens"),
    ),
    (
        &["-e", "--escape"],
        See("a prompt is used as it is; the shell's $'a\\nb' writes escapes"),
    ),
    (&["--no-escape"], Anyway),
    (&["-cnv", "--conversation"], See(CHAT)),
    (
        &["-no-cnv", "-nocnv", "--no-conversation"],
        See("`bitnet generate` continues a text"),
    ),
    (
        &["-st", "--single-turn"],
        See("`bitnet generate --chat-format -p TEXT` answers once"),
    ),
    (
        &["-mli", "--multiline-input"],
        See("\"\"\" begins and ends a message of several lines"),
    ),
    (&["--jinja"], Anyway),
    (&["--no-jinja", "--chat-template"], See(TEMPLATE)),
    (
        &[
            "--chat-template-kwargs",
            "--skip-chat-parsing",
            "--no-skip-chat-parsing",
        ],
        See(TEMPLATE),
    ),
    (
        &[
            "-rea",
            "--reasoning",
            "--reasoning-format",
            "--reasoning-effort",
            "--reasoning-budget",
            "--reasoning-budget-message",
            "--reasoning-preserve",
            "--no-reasoning-preserve",
            "--think",
            "--hidethinking",
        ],
        See(REASONING),
    ),
    (&["--in-prefix", "--in-suffix", "--in-prefix-bos"], See(TEMPLATE)),
    (&["--interactive-first"], Is("--interactive")),
    (&["-sp"], Is("--special")),
    (&["-r"], Is("--stop")),
    (&["--display-prompt", "--echo-prompt"], Is("--echo")),
    (
        &[
            "--no-display-prompt",
            "--no-perf",
            "--show-timings",
            "--log-disable",
            "--no-log-prefix",
            "--no-log-timestamps",
        ],
        Anyway,
    ),
    (&["--no-show-timings", "--silent"], Is("--quiet")),
    (
        &["--verbose-prompt"],
        See("`bitnet tokenize` shows the tokens of a text"),
    ),
    (
        &["-co", "--color", "--nowordwrap"],
        See("a terminal gets colors and a pipe none; NO_COLOR=1 turns them off"),
    ),
    (
        &[
            "-v",
            "--verbose",
            "--log-verbose",
            "-lv",
            "--verbosity",
            "--log-verbosity",
            "--log-file",
            "--log-colors",
            "--log-prefix",
            "--log-timestamps",
            "--log-prompts-dir",
            "--perf",
        ],
        See(LOGS),
    ),
    (&["--format", "--keepalive"], See("--json prints one JSON object")),
    (&["--output-file"], See("text goes to stdout; > FILE keeps it")),
    (
        &["--completion-bash"],
        See("`bitnet completions bash` prints the completions"),
    ),
    // Sampling.
    (&["-temp", "-temperature"], Is("--temp")),
    (
        &["--max-new-tokens", "--max-length", "--predict", "--num-predict"],
        Is("--n-predict"),
    ),
    (
        &["--do-sample", "--num-beams"],
        See("--temp 0 takes the most likely token each time; any other --temp draws"),
    ),
    (
        &[
            "--samplers",
            "--sampler-seq",
            "--sampling-seq",
            "--top-nsigma",
            "--top-n-sigma",
            "--xtc-probability",
            "--xtc-threshold",
            "--typical",
            "--typical-p",
            "--dry-multiplier",
            "--dry-base",
            "--dry-allowed-length",
            "--dry-penalty-last-n",
            "--dry-sequence-breaker",
            "--adaptive-target",
            "--adaptive-decay",
            "--dynatemp-range",
            "--dynatemp-exp",
            "--mirostat",
            "--mirostat-lr",
            "--mirostat-ent",
            "-bs",
            "--backend-sampling",
            "--tfs",
            "--penalize-nl",
        ],
        See(SAMPLER),
    ),
    (
        &[
            "--grammar",
            "--grammar-file",
            "-j",
            "--json-schema",
            "-jf",
            "--json-schema-file",
        ],
        See(GRAMMAR),
    ),
    // Speculative decoding.
    (&["--draft", "--draft-n"], Is("--draft-max")),
    (
        &[
            "--draft-min",
            "--draft-n-min",
            "--draft-p-split",
            "--draft-p-min",
            "-md",
            "--model-draft",
            "-hfd",
            "-hfrd",
            "--hf-repo-draft",
            "-td",
            "--threads-draft",
            "-tbd",
            "--threads-batch-draft",
            "-Cd",
            "--cpu-mask-draft",
            "-Crd",
            "--cpu-range-draft",
            "--cpu-strict-draft",
            "--prio-draft",
            "--poll-draft",
            "-Cbd",
            "--cpu-mask-batch-draft",
            "--cpu-strict-batch-draft",
            "--prio-batch-draft",
            "--poll-batch-draft",
            "-otd",
            "--override-tensor-draft",
            "-cmoed",
            "--cpu-moe-draft",
            "-ncmoed",
            "--n-cpu-moe-draft",
            "-devd",
            "--device-draft",
            "-ngld",
            "--gpu-layers-draft",
            "--n-gpu-layers-draft",
            "-cd",
            "--ctx-size-draft",
        ],
        See(DRAFT),
    ),
    // Measuring.
    (
        &[
            "-pg",
            "--delay",
            "-oe",
            "--output-err",
            "--progress",
            "-embd",
            "--embeddings",
            "--n-gen-warmup",
        ],
        See("-p, -n, -d and -b say what is timed, -r how often, -o and --save in which form"),
    ),
    (
        &[
            "--chunks",
            "--ppl-stride",
            "--ppl-output-type",
            "--hellaswag",
            "--winogrande",
            "--multiple-choice",
            "--kl-divergence",
        ],
        See("`bitnet perplexity` scores a text in chunks of -c tokens, or as one piece with --whole"),
    ),
    // Servers.
    (
        &[
            "--host",
            "--port",
            "-a",
            "--alias",
            "--api-key",
            "--api-key-file",
            "--ssl-key-file",
            "--ssl-cert-file",
            "--metrics",
            "--slots",
            "--no-slots",
            "--props",
            "--path",
            "--no-webui",
            "--embedding",
            "--reranking",
            "-to",
            "--timeout",
            "--threads-http",
            "-sps",
            "--slot-prompt-similarity",
            "--served-model-name",
            "--server-base",
        ],
        See(SERVER),
    ),
];

/// Commands of other programs.
const VERBS: &[(&[&str], &str)] = &[
    (
        &["run", "cli", "main"],
        "`bitnet chat -m MODEL` talks to a model, `bitnet generate -m MODEL -p TEXT` continues a text",
    ),
    (
        &["completion", "complete"],
        "`bitnet generate` continues a text; `bitnet completions` is for shells",
    ),
    (
        &["serve", "server"],
        "there is no server yet; `bitnet chat` talks to a model",
    ),
    (
        &["show", "info", "gguf"],
        "`bitnet inspect` shows what is in a model",
    ),
    (
        &["quantize", "create", "convert-hf-to-gguf"],
        "`bitnet convert` packs a checkpoint",
    ),
    (
        &["detokenize"],
        "`bitnet tokenize --ids` gives the text of token ids",
    ),
    (&["benchmark", "speed"], "`bitnet bench model` measures a model"),
    (&["ppl"], "`bitnet perplexity` scores a text"),
    (
        &["download"],
        "`bitnet pull` fetches a model from the Hugging Face Hub",
    ),
    (
        &["ls", "ps", "cache"],
        "`bitnet list` shows the models in the cache, and `bitnet rm` removes them",
    ),
    (
        &["env", "collect-env", "devices"],
        "`bitnet doctor` checks this machine",
    ),
];

/// The command line with flags of other programs in the place of which ours stand. `root` is the command line of the program.
pub(crate) fn translate(root: &Command, args: Vec<OsString>) -> anyhow::Result<Vec<OsString>> {
    let mut command = root;
    let mut out = Vec::with_capacity(args.len());
    let mut rest = args.into_iter().peekable();
    out.extend(rest.next());
    while let Some(arg) = rest.next() {
        let Some(text) = arg.to_str().map(str::to_owned) else {
            out.push(arg);
            continue;
        };
        if text == "--" {
            out.push(arg);
            out.extend(rest);
            return Ok(out);
        }
        if !text.starts_with('-') || is_number(&text) || text == "-" {
            if let Some(inner) = command.find_subcommand(&text) {
                command = inner;
            } else if command.has_subcommands() {
                refuse_verb(command, &text)?;
            }
            out.push(arg);
            continue;
        }
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (text.clone(), None),
        };
        let found = match find(command, &name) {
            Some(found) => found,
            None => match foreign(command, &name, value.is_some())? {
                Foreign::Unknown => {
                    out.push(arg);
                    continue;
                }
                Foreign::Anyway { values } => {
                    let next = rest.peek().and_then(|next| next.to_str());
                    if value.is_none() && next.is_some_and(|next| values.contains(&next)) {
                        rest.next();
                    } else if value.is_some_and(|value| !values.contains(&value.as_str())) {
                        return Err(no_flag(&name, "it has no such value"));
                    }
                    continue;
                }
                Foreign::Valued(values, hint) => {
                    let given = match &value {
                        Some(value) => Some(value.clone()),
                        None => rest.peek().and_then(|next| next.to_str()).map(str::to_owned),
                    };
                    match given {
                        Some(given) if values.contains(&given.as_str()) => {
                            if value.is_none() {
                                rest.next();
                            }
                        }
                        // llama.cpp's older programs have it as a switch.
                        given if given.as_ref().is_none_or(|given| given.starts_with('-')) => {}
                        _ => return Err(no_flag(&name, hint)),
                    }
                    continue;
                }
                Foreign::Is(found, spelled) => {
                    // A folder that is named twice is a mistake, whichever names are used.
                    out.push(match &value {
                        Some(value) => format!("{spelled}={value}").into(),
                        None => spelled.into(),
                    });
                    if takes_value(found) && value.is_none() {
                        out.extend(next_value(found, &mut rest));
                    }
                    continue;
                }
            },
        };
        out.push(arg);
        if takes_value(found) && value.is_none() {
            out.extend(next_value(found, &mut rest));
        }
    }
    Ok(out)
}

/// What a flag that is not one of this command turned out to be.
enum Foreign<'c> {
    /// One of ours, as it is spelled here.
    Is(&'c Arg, String),
    Anyway {
        values: &'static [&'static str],
    },
    Valued(&'static [&'static str], &'static str),
    /// Left to clap: a cluster of short flags, a short flag with its value, or a mistake.
    Unknown,
}

fn foreign<'c>(command: &'c Command, name: &str, has_value: bool) -> anyhow::Result<Foreign<'c>> {
    // Underscores are as good as hyphens, in llama.cpp and in Python.
    let hyphens = match name.starts_with("--") {
        true => format!("--{}", name[2..].replace('_', "-")),
        false => name.to_owned(),
    };
    if let Some(found) = find(command, &hyphens) {
        return Ok(Foreign::Is(found, hyphens));
    }
    if let Some((_, here)) = TABLE.iter().find(|(names, _)| names.contains(&hyphens.as_str())) {
        return match *here {
            Is(ours) => match find(command, ours) {
                Some(found) => {
                    // Not llama.cpp's own spelling: whoever writes it should know the right one.
                    if hyphens.starts_with("-temp") {
                        say!("warning: {name} is taken for {ours}");
                    }
                    Ok(Foreign::Is(found, ours.to_owned()))
                }
                None => Err(no_flag(
                    name,
                    &format!("it is {ours} in other commands, and has no place in this one"),
                )),
            },
            Anyway => Ok(Foreign::Anyway { values: &[] }),
            AnywayWith(values, hint) => Ok(Foreign::Valued(values, hint)),
            See(_) if hyphens == "-cnv" && command.get_name() == "chat" => {
                Ok(Foreign::Anyway { values: &[] })
            }
            See(_) if hyphens == "--conversation" && command.get_name() == "chat" => {
                Ok(Foreign::Anyway { values: &[] })
            }
            See(_) if hyphens.ends_with("no-cnv") && command.get_name() == "generate" => {
                Ok(Foreign::Anyway { values: &[] })
            }
            See(hint) => Err(no_flag(name, hint)),
        };
    }
    let word = name.trim_start_matches('-');
    let letters = word
        .chars()
        .all(|c| c.is_ascii_alphabetic() || c == '-' || c == '_');
    if name.starts_with("--") || word.len() < 2 || !letters {
        return Ok(Foreign::Unknown);
    }
    // One dash before a long name.
    let long = format!("--{}", word.replace('_', "-"));
    if let Some(found) = find(command, &long) {
        say!("warning: {name} is taken for {long}");
        return Ok(Foreign::Is(found, long));
    }
    // What clap would take for the short flag that asks for help, or for one that wants a number.
    let first = word.chars().next().map(String::from).unwrap_or_default();
    let number = find(command, &format!("-{first}"))
        .is_some_and(|found| takes_value(found) && wants_number(found) && !has_value);
    if first == "h" || first == "V" || number {
        let hint = format!("`bitnet {} --help` lists the flags", command.get_name());
        return Err(usage(format!("there is no flag {name}"), hint));
    }
    Ok(Foreign::Unknown)
}

fn no_flag(name: &str, hint: &str) -> anyhow::Error {
    usage(format!("{name} is not a flag of bitnet"), hint)
}

fn refuse_verb(command: &Command, verb: &str) -> anyhow::Result<()> {
    let bare = verb.strip_prefix("llama-").unwrap_or(verb);
    match VERBS.iter().find(|(names, _)| names.contains(&bare)) {
        Some((_, hint)) if command.get_name() == "bitnet" => {
            Err(usage(format!("{verb} is not a command of bitnet"), *hint))
        }
        _ => Ok(()),
    }
}

/// The flag of `command` that is spelled so, its dashes included.
fn find<'c>(command: &'c Command, spelled: &str) -> Option<&'c Arg> {
    let long = spelled.strip_prefix("--");
    let mut letters = spelled.chars().skip(1);
    let short = match (long, letters.next(), letters.next()) {
        (None, Some(letter), None) => Some(letter),
        _ => None,
    };
    command.get_arguments().find(|arg| {
        let is_long = |name: &str| Some(name) == long;
        arg.get_long().is_some_and(is_long)
            || arg.get_all_aliases().unwrap_or_default().into_iter().any(is_long)
            || (short.is_some() && arg.get_short() == short)
    })
}

fn takes_value(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Set | ArgAction::Append)
}

/// Whether its value is a count.
fn wants_number(arg: &Arg) -> bool {
    arg.get_value_names()
        .is_some_and(|names| names.iter().any(|name| name == "N"))
}

/// The argument that is the value of `arg`: the next one, unless it is a flag and no value of this one can look like that.
fn next_value(arg: &Arg, rest: &mut std::iter::Peekable<impl Iterator<Item = OsString>>) -> Option<OsString> {
    let text = rest.peek()?.to_str().unwrap_or_default();
    let flag = text.starts_with('-') && text.len() > 1 && !is_number(text);
    if flag && !arg.is_allow_hyphen_values_set() {
        return None;
    }
    rest.next()
}

fn is_number(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') && digits.parse::<f64>().is_ok()
}

#[cfg(test)]
mod tests {
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
                "bitnet chat -threads 4 -seed 7",
                "bitnet chat --threads 4 --seed 7",
            ),
            (
                "bitnet generate -qi -n5 -mfolder",
                "bitnet generate -qi -n5 -mfolder",
            ),
        ] {
            assert_eq!(translated(theirs).as_deref(), Ok(ours), "{theirs}");
        }
    }

    #[test]
    fn every_other_flag_is_refused_by_its_name() {
        for (names, here) in TABLE {
            for name in *names {
                for command in ["generate", "chat", "perplexity", "bench model"] {
                    let result = translated(&format!("bitnet {command} {name} x"));
                    match (here, result) {
                        (_, Err(message)) => assert!(message.contains(name), "{command} {name}: {message}"),
                        (See(_), Ok(line)) => {
                            // Where it is a flag of the command itself, it stays as it is.
                            assert!(
                                line.split(' ').any(|word| word == *name)
                                    || name.ends_with("cnv")
                                    || *name == "--conversation",
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
        let generate = root.find_subcommand("generate").unwrap();
        let mut seen = std::collections::BTreeSet::new();
        for (names, here) in TABLE {
            for name in *names {
                assert!(name.starts_with('-') && seen.insert(*name), "{name} twice");
            }
            if let Is(ours) = here {
                assert!(find(generate, ours).is_some(), "{ours}");
            }
        }
    }
}
