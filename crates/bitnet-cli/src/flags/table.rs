//! What the flags and commands of other programs are here.

/// What becomes of a flag of another program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Here {
    /// It is this flag; its value, if it has one, stays.
    Is(&'static str),
    /// It asks for what happens anyway: it is dropped, with a value where it has one.
    Anyway,
    /// It asks for what happens anyway when it has one of these values.
    AnywayWith(&'static [&'static str], &'static str),
    /// It is refused, and this is the counterpart, or why there is none.
    See(&'static str),
    /// It is this flag in commands that have it; in others it is refused, with the counterpart.
    IsOr(&'static str, &'static str),
    /// It asks for what this command does anyway, as [`Here::Anyway`]; in others it is refused, with the counterpart.
    AnywayIn(&'static str, &'static str),
}
use Here::{Anyway, AnywayIn, AnywayWith, Is, IsOr, See};

const ON: &[&str] = &["on", "auto", "1", "true"];
const DEVICE: &str = "the whole model runs on one device: --device cuda, cuda:N or cpu";
const LOADING: &str = "weights are read into memory once; there is nothing to choose";
const AFFINITY: &str = "threads are placed by the system; --numa spreads them over sockets, `taskset` before the command chooses cores, -t counts them";
const SAMPLER: &str =
    "there is no such sampler; --temp, --top-k, --top-p, --min-p and the penalties choose tokens";
const DRAFT: &str = "there is no speculative decoding with a second model";
const ROPE: &str = "positions are computed as config.json says; -c sets the context";
const LOGS: &str = "there is no log but that of `bitnet serve`; -q of `generate`, `chat` and `batch` leaves their statistics out";
const LOG_FILE: &str =
    "the log of `bitnet serve` goes to stderr, with the statistics of other commands: 2> FILE keeps it";
const TOOLS: &str = "requests bring their tools, and the model's chat template says how calls are written; the server runs none";
const MODEL: &str = "-m names a model: its folder, its GGUF file, or owner/name:file of the Hugging Face Hub";
const ADAPTER: &str = "adapters are not supported; merge it into the weights, then convert them";
const MEDIA: &str = "models here read and write text alone";
const EXPERTS: &str = "no supported model has experts";
const REASONING: &str =
    "text between thinking tags is text like any other; a template of --chat-template-file may leave it out";
const CHAT: &str = "`bitnet chat` holds a conversation, and `bitnet generate --chat-format` answers once";
const SYSTEM_FILE: &str = "--system takes a text: --system \"$(cat FILE)\"";
const TEMPLATE: &str = "--chat-template-file names a file with a Jinja template";
const SERVER: &str = "it is a flag of `bitnet serve`";
const TLS: &str = "a gateway such as haproxy or nginx before `bitnet serve` speaks TLS";
const CONTINUOUS: &str =
    "`bitnet serve` and `bitnet batch` answer many at a time, and begin whoever comes beside them";
const ONE_AT_A_TIME: &str = "one prompt is answered at a time; `bitnet serve` and `bitnet batch` answer many, `bitnet bench model -b` times them";
const EMBEDDINGS: &str = "`bitnet embed` gives the vector of a text; no server of embeddings is built yet";
const BENCH: &str = "`bitnet bench model` has it: -p, -n, -d and -b say what is timed";
const CONVERT: &str = "`bitnet convert -o PATH --to gguf --gguf-type TYPE` has it";
const CACHE: &str = "a conversation keeps its keys and values; there is nothing to choose";

/// The flags of llama.cpp's programs (cli, completion, server, bench, perplexity) that are not flags here, of the wrappers
/// of bitnet.cpp, of transformers, ollama and vLLM. Names that are flags here need no line.
pub(super) const TABLE: &[(&str, Here)] = &[
    // Which model.
    (
        "-hf -hfr --hf-repo --model-id --model-name-or-path",
        Is("--model"),
    ),
    ("-hff --hf-file -mu --model-url -dr --docker-repo", See(MODEL)),
    ("-hft --hf-token", See("the variable HF_TOKEN holds the token")),
    (
        "--load-format --tokenizer --models-dir --models-preset",
        See(MODEL),
    ),
    ("--revision", See("-m owner/name@REVISION names one")),
    (
        "--download-dir",
        See("the variable HF_HUB_CACHE names the folder of the cache"),
    ),
    (
        "--generation-config --override-generation-config",
        See("generation_config.json of the model's folder says what requests and flags leave open"),
    ),
    (
        "-cl --cache-list",
        See("`bitnet list` shows what is in the cache"),
    ),
    (
        "--offline",
        See("the variable HF_HUB_OFFLINE=1 forbids connections"),
    ),
    (
        "--lora --enable-lora --lora-modules --lora-scaled --lora-init-without-apply --lora-base --control-vector --control-vector-scaled \
         --control-vector-layer-range",
        See(ADAPTER),
    ),
    (
        "-mm --mmproj -mmu --mmproj-url --mmproj-auto --no-mmproj --no-mmproj-auto --mmproj-offload \
         --no-mmproj-offload -mmdev --mmproj-device --media-path --image --audio --video --image-min-tokens --image-max-tokens",
        See(MEDIA),
    ),
    (
        "--override-kv --check-tensors",
        See("`bitnet inspect --verify` checks a model; its own files describe it"),
    ),
    (
        "--gpt-oss-20b-default --gpt-oss-120b-default --vision-gemma-4b-default --vision-gemma-12b-default",
        See(MODEL),
    ),
    // Where it runs.
    (
        "-ngl --gpu-layers --n-gpu-layers -tp -pp -dp --pipeline-parallel-size --data-parallel-size --swap-space --cpu-offload-gb",
        See(DEVICE),
    ),
    ("-dev", Is("--device")),
    ("-mg --main-gpu", See("--device cuda:N names a GPU")),
    (
        "-sm --split-mode -ts --tensor-split --tensor-parallel-size --rpc -rpc -ot --override-tensor --device-map \
         --no-host",
        See(DEVICE),
    ),
    (
        "--enforce-eager",
        See("steps of a GPU are recorded where that is faster; there is nothing to choose"),
    ),
    (
        "--gpu-memory-utilization",
        See("--kv-memory sets the bytes of keys and values, by default at most 90 % of what is free"),
    ),
    (
        "--block-size",
        See("a page has as many tokens as the device is fast with"),
    ),
    ("-kvo --kv-offload --op-offload", Anyway),
    ("-nkvo --no-kv-offload --no-op-offload -nopo", See(DEVICE)),
    ("-cmoe --cpu-moe -ncmoe --n-cpu-moe", See(EXPERTS)),
    (
        "-fit --fit",
        AnywayWith(ON, "-c sets the context; what does not fit is refused"),
    ),
    (
        "-fitt --fit-target -fitc --fit-ctx",
        See("-c sets the context; what does not fit is refused"),
    ),
    (
        "--list-devices",
        See("`bitnet doctor` lists the devices and tests them"),
    ),
    ("-tb --threads-batch", See("-t is for prompts and answers alike")),
    (
        "-C --cpu-mask -Cr --cpu-range --cpu-strict --prio --poll -Cb --cpu-mask-batch -Crb --cpu-range-batch \
         --cpu-strict-batch --prio-batch --poll-batch",
        See(AFFINITY),
    ),
    (
        "-mmp --mlock --no-mmap -lm --load-mode -dio --direct-io -lzm --lazy-mode --low-cpu-mem-usage",
        See(LOADING),
    ),
    ("--mmap -ndio --no-direct-io --repack --warmup", Anyway),
    (
        "-nr --no-repack",
        See("weights always take the layout of the device"),
    ),
    (
        "--no-warmup",
        See("the first run of each test warms up and is not counted"),
    ),
    (
        "--dtype --torch-dtype --load-in-4bit --load-in-8bit --quantization -q4 --attn-implementation",
        See("weights stay as they are trained; --lm-head int8 and --kv-type change head and cache"),
    ),
    (
        "--trust-remote-code",
        See("no code of a model's folder is ever run"),
    ),
    // Context and batches.
    ("-ub --ubatch-size", Is("--batch-size")),
    ("--max-model-length --num-ctx --ctx", Is("--ctx-size")),
    (
        "--keep --context-shift --no-context-shift --swa-full -gan --grp-attn-n -gaw --grp-attn-w",
        See("a chat whose context is full forgets its oldest messages and keeps the system message"),
    ),
    (
        "-ctxcp --ctx-checkpoints --swa-checkpoints -cram --cache-ram --no-cache-prompt \
         --no-enable-prefix-caching --cache-reuse -dt --defrag-thold --prompt-cache --prompt-cache-all --prompt-cache-ro --slot-save-path \
         -kvu --kv-unified -no-kvu --no-kv-unified -cms --checkpoint-min-step -cpent --checkpoint-every-n-tokens",
        See(CACHE),
    ),
    ("--cache-prompt --enable-prefix-caching", AnywayIn("serve", CACHE)),
    (
        "--enable-chunked-prefill",
        AnywayIn(
            "serve",
            "-b says how many tokens of a prompt are computed at once",
        ),
    ),
    ("-ctk --cache-type-k -ctv --cache-type-v", Is("--kv-type")),
    (
        "-ctkd --cache-type-k-draft --spec-draft-type-k -ctvd --cache-type-v-draft --spec-draft-type-v",
        See(DRAFT),
    ),
    (
        "-fa --flash-attn",
        AnywayWith(
            ON,
            "attention never writes its scores to memory; there is no other one",
        ),
    ),
    ("-np", IsOr("--parallel", ONE_AT_A_TIME)),
    ("--parallel --max-num-seqs -ns --sequences", See(ONE_AT_A_TIME)),
    ("-cb --cont-batching", AnywayIn("serve", CONTINUOUS)),
    ("-nocb --no-cont-batching", See(CONTINUOUS)),
    (
        "--rope-scaling --rope-scale --rope-freq-base --rope-freq-scale --yarn-orig-ctx --yarn-ext-factor \
         --yarn-attn-factor --yarn-beta-slow --yarn-beta-fast",
        See(ROPE),
    ),
    // Prompt and conversation.
    ("-sys --system-prompt --sys", Is("--system")),
    ("-sysf --system-prompt-file", See(SYSTEM_FILE)),
    (
        "-bf --binary-file",
        See("-f reads a file of UTF-8 text, and --prompt-ids takes tokens"),
    ),
    (
        "-e --escape",
        See("a prompt is used as it is; the shell's $'a\\nb' writes escapes"),
    ),
    ("--no-escape", Anyway),
    ("-cnv --conversation", See(CHAT)),
    (
        "-no-cnv -nocnv --no-conversation",
        See("`bitnet generate` continues a text"),
    ),
    (
        "-st --single-turn",
        See("`bitnet generate --chat-format -p TEXT` answers once"),
    ),
    (
        "-mli --multiline-input",
        See("\"\"\" begins and ends a message of several lines"),
    ),
    ("--jinja", Anyway),
    ("--no-jinja --chat-template", See(TEMPLATE)),
    (
        "--chat-template-kwargs --skip-chat-parsing --no-skip-chat-parsing",
        See(TEMPLATE),
    ),
    (
        "-rea --reasoning --reasoning-parser --reasoning-format --reasoning-effort --reasoning-budget --reasoning-budget-message \
         --reasoning-preserve --no-reasoning-preserve --think --hidethinking",
        See(REASONING),
    ),
    ("--in-prefix --in-suffix --in-prefix-bos", See(TEMPLATE)),
    ("--interactive-first -if", Is("--interactive")),
    ("-i --interactive", AnywayIn("chat", CHAT)),
    ("-ins --instruct", See(CHAT)),
    ("-sp", Is("--special")),
    ("-r", Is("--stop")),
    ("--display-prompt --echo-prompt", Is("--echo")),
    (
        "--no-display-prompt --no-perf --show-timings --log-disable --no-log-prefix --no-log-timestamps",
        Anyway,
    ),
    ("--no-show-timings --silent", Is("--quiet")),
    (
        "--verbose-prompt",
        See("`bitnet tokenize` shows the tokens of a text"),
    ),
    (
        "-co --color --nowordwrap",
        See("a terminal gets colors and a pipe none; NO_COLOR=1 turns them off"),
    ),
    (
        "-v --verbose --log-verbose -lv --verbosity --log-verbosity -ptc --print-token-count --log-colors --log-prefix \
         --log-timestamps --log-prompts-dir --perf",
        See(LOGS),
    ),
    ("--log-file", See(LOG_FILE)),
    (
        "--uvicorn-log-level",
        See("-v of `bitnet serve` logs more, and the variable RUST_LOG says what"),
    ),
    ("--disable-log-requests", AnywayIn("serve", SERVER)),
    ("--usage", See("--help lists the flags")),
    ("--version", See("`bitnet --version` prints it")),
    (
        "--license",
        See("it is MIT OR Apache-2.0; `bitnet inspect` shows that of a model"),
    ),
    ("--format --keepalive", See("--json prints one JSON object")),
    ("--output-file", See("text goes to stdout; > FILE keeps it")),
    (
        "--completion-bash",
        See("`bitnet completions bash` prints the completions"),
    ),
    // Sampling.
    ("-temp -temperature", Is("--temp")),
    (
        "--max-new-tokens --max-length --predict --num-predict",
        Is("--n-predict"),
    ),
    (
        "--do-sample --num-beams",
        See("--temp 0 takes the most likely token each time; any other --temp draws"),
    ),
    (
        "--samplers --sampler-seq --sampling-seq --top-nsigma --top-n-sigma --xtc-probability --xtc-threshold \
         --typical --typical-p --dry-multiplier --dry-base --dry-allowed-length --dry-penalty-last-n \
         --dry-sequence-breaker --adaptive-target --adaptive-decay --dynatemp-range --dynatemp-exp --mirostat \
         --mirostat-lr --mirostat-ent -bs --backend-sampling --tfs --penalize-nl",
        See(SAMPLER),
    ),
    ("-jf --json-schema-file", Is("--json-schema")),
    // Speculative decoding.
    ("--draft --draft-n", Is("--draft-max")),
    (
        "--spec-type --spec-default",
        See("guesses come from the text itself; --draft-max of `generate` and `chat` says how many"),
    ),
    (
        "--speculative-config -lcs --lookup-cache-static -lcd --lookup-cache-dynamic --draft-min --draft-n-min --draft-p-split --draft-p-min -md --model-draft \
         -hfd -hfrd --hf-repo-draft -td --threads-draft -tbd --threads-batch-draft -Cd --cpu-mask-draft -Crd \
         --cpu-range-draft --cpu-strict-draft --prio-draft --poll-draft -Cbd --cpu-mask-batch-draft \
         --cpu-strict-batch-draft --prio-batch-draft --poll-batch-draft -otd --override-tensor-draft -cmoed \
         --cpu-moe-draft -ncmoed --n-cpu-moe-draft -devd --device-draft -ngld --gpu-layers-draft \
         --n-gpu-layers-draft -cd --ctx-size-draft",
        See(DRAFT),
    ),
    // Measuring.
    (
        "-pg --delay -oe --output-err --progress --n-gen-warmup",
        See("-p, -n, -d and -b say what is timed, -r how often, -o and --save in which form"),
    ),
    ("--n-depth", IsOr("--depth", BENCH)),
    ("-npp", IsOr("--n-prompt", BENCH)),
    ("-ntg", IsOr("--n-gen", BENCH)),
    ("-npl", IsOr("--batch", BENCH)),
    (
        "-pps",
        See("prompts that begin alike are computed once; `bitnet bench schedule` times that"),
    ),
    (
        "--kl-divergence-base --save-all-logits",
        See("`bitnet logits` writes the logits of a text"),
    ),
    // Conversion.
    ("--outfile", IsOr("--out", CONVERT)),
    ("--outtype", IsOr("--gguf-type", CONVERT)),
    (
        "--imatrix --pure --leave-output-tensor --output-tensor-type --token-embedding-type",
        See("ternary weights are packed as they are, and the rest keeps its type; nothing is estimated"),
    ),
    (
        "--chunks --ppl-stride --ppl-output-type --hellaswag --winogrande --multiple-choice --kl-divergence",
        See("`bitnet perplexity` scores a text in chunks of -c tokens, or as one piece with --whole"),
    ),
    // Servers.
    (
        "--host --port -a --alias --served-model-name --api-key --api-key-file --api-prefix --no-metrics --no-slots \
         --no-ui --no-webui --timeout --threads-http --max-queue --max-num-queued-reqs --max-num-queued-tokens \
         --scheduling-policy --cors-origins --log-prompts",
        See(SERVER),
    ),
    ("-to", IsOr("--request-timeout", SERVER)),
    (
        "--reuse-port",
        See("a gateway before several servers shares requests out; docs/serving.md shows some"),
    ),
    (
        "--cors-methods --cors-headers --cors-credentials",
        See("--cors-origins of `bitnet serve` names the origins; methods and headers follow"),
    ),
    ("--tags", See("--alias of `bitnet serve` names the model")),
    ("--tools --tool-call-parser -ag --agent --tool-server", See(TOOLS)),
    ("--enable-auto-tool-choice", AnywayIn("serve", TOOLS)),
    (
        "--max-logprobs",
        See("each request says how many it wants: `top_logprobs`"),
    ),
    (
        "--task --runner --convert",
        See("a model's files say whether it writes text; `bitnet embed` gives vectors"),
    ),
    (
        "--metrics --slots --ui --webui --props",
        AnywayIn("serve", SERVER),
    ),
    ("--root-path", IsOr("--api-prefix", SERVER)),
    (
        "--allowed-origins",
        See("--cors-origins of `bitnet serve` names the origins"),
    ),
    (
        "--ssl-key-file --ssl-cert-file --ssl-keyfile --ssl-certfile",
        See(TLS),
    ),
    (
        "-embd --embedding --embeddings --pooling --rerank --reranking",
        See(EMBEDDINGS),
    ),
    (
        "--path -sps --slot-prompt-similarity --server-base",
        See("the page and the cache of `bitnet serve` are part of it; there is nothing to choose"),
    ),
];

/// Commands of other programs.
pub(super) const VERBS: &[(&str, &str)] = &[
    (
        "run cli main",
        "`bitnet chat -m MODEL` talks to a model, `bitnet generate -m MODEL -p TEXT` continues a text",
    ),
    (
        "completion complete",
        "`bitnet generate` continues a text; `bitnet completions` is for shells",
    ),
    ("server", "`bitnet serve` is the server"),
    ("show info gguf", "`bitnet inspect` shows what is in a model"),
    (
        "quantize create convert-hf-to-gguf",
        "`bitnet convert` packs a checkpoint",
    ),
    (
        "detokenize",
        "`bitnet tokenize --ids` gives the text of token ids",
    ),
    (
        "benchmark speed batched-bench",
        "`bitnet bench model` measures a model",
    ),
    ("ppl eval", "`bitnet perplexity` scores a text"),
    (
        "run-batch",
        "`bitnet batch -i FILE -o FILE` answers a file of requests",
    ),
    ("remove delete", "`bitnet rm` removes models from the cache"),
    (
        "embedding embeddings",
        "`bitnet embed` gives the vector of a text",
    ),
    ("version", "`bitnet --version` prints it"),
    (
        "update upgrade",
        "the system or `cargo install` that installed it brings a newer one; `bitnet pull` fetches a model's newest files",
    ),
    ("stop", "Ctrl-C or SIGTERM ends `bitnet serve`"),
    ("push login", "`bitnet` sends nothing; the hub's own `hf` does"),
    (
        "download",
        "`bitnet pull` fetches a model from the Hugging Face Hub",
    ),
    (
        "ls ps cache models",
        "`bitnet list` shows the models in the cache, and `bitnet rm` removes them",
    ),
    ("env collect-env devices", "`bitnet doctor` checks this machine"),
];
