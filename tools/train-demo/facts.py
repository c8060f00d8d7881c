"""What the demo model knows by heart: this project, itself, and manners. Every answer is one that README.md,
ARCHITECTURE.md and docs/ give too; who changes those looks here, and trains again when an answer became wrong."""

# (answer, questions); a question is asked in other cases, without its mark, with a word before or after it, and with typos.
PROJECT = [
    ("bitnet is a program and a set of Rust crates that run BitNet b1.58 language models on processors and on NVIDIA GPUs.",
     ["What is bitnet?", "What is this project?", "Tell me about this project.", "What does this program do?", "What is this?",
      "What does bitnet do?", "Describe this project.", "Explain bitnet."]),
    ("A BitNet b1.58 model is a language model in which every weight of a linear layer is -1, 0 or +1 and every activation has 8 bits.",
     ["What is BitNet b1.58?", "What is a BitNet model?", "What does BitNet mean?", "How do BitNet models work?", "What is b1.58?",
      "Explain BitNet b1.58."]),
    ("Because a weight with three values holds log2(3) = 1.58 bits.",
     ["Why 1.58?", "Why is it called b1.58?", "Where does 1.58 come from?", "What does 1.58 mean?", "Why 1.58 bits?"]),
    ("A ternary weight is -1, 0 or +1; one scale for the whole matrix gives it its size.",
     ["What is a ternary weight?", "What are ternary weights?", "What values can a weight have?", "What does ternary mean?",
      "How many values has a weight?"]),
    ("A weight takes two bits.",
     ["How many bits does a weight take?", "How large is a weight?", "How many bits per weight?", "How are weights stored?",
      "How big is a weight?"]),
    ("Activations are quantized to 8 bits with one scale a token: 127 / max(absmax, 1e-5), rounded half to even.",
     ["How are activations quantized?", "How many bits do activations have?", "What about activations?", "What is an activation?",
      "How does it quantize activations?"]),
    ("It is written in Rust, from the checkpoint reader to the GPU kernels.",
     ["What language is it written in?", "What is it written in?", "Is it written in Rust?", "Which programming language is used?",
      "Is there C++ in it?", "What programming language is this?"]),
    ("No. Neither building nor running it needs Python.",
     ["Does it need Python?", "Do I need Python?", "Is Python required?", "Do I have to install Python?"]),
    ("No. Neither building nor running it needs the CUDA toolkit; on a GPU the driver is enough.",
     ["Does it need the CUDA toolkit?", "Do I need CUDA?", "Is CUDA required?", "Do I have to install the CUDA toolkit?", "Do I need nvcc?"]),
    ("No. Without a GPU it runs on the processor.",
     ["Do I need a GPU?", "Does it need a GPU?", "Is a GPU required?", "Can it run without a GPU?", "Does it run on a CPU?",
      "Can I use it without a graphics card?"]),
    ("NVIDIA GPUs of compute capability 8.0 or higher, on Linux.",
     ["Which GPUs are supported?", "What GPUs does it support?", "Does it run on my GPU?", "Which graphics cards work?",
      "Which compute capability is needed?", "What GPU do I need?"]),
    ("No. Only NVIDIA GPUs on Linux are supported.",
     ["Does it support AMD GPUs?", "Does it run on Radeon cards?", "Are Intel GPUs supported?", "Does it run on Apple GPUs?",
      "Can it use Metal?", "Does it support ROCm?"]),
    ("x86-64 and AArch64: the best of AMX, AVX-512 VNNI, AVX-VNNI, AVX2, NEON and portable code is chosen when a model is loaded.",
     ["Which processors are supported?", "What CPUs does it support?", "Which instruction sets does it use?", "Does it use AVX2?",
      "Does it support ARM?", "Does it run on AArch64?", "Does it use AMX?", "Which CPU do I need?"]),
    ("Rust 1.95 or newer and a C compiler, for the tokenizer's regular expressions.",
     ["What do I need to build it?", "Which Rust version do I need?", "What are the requirements?", "Which compiler do I need?",
      "What is needed to build?"]),
    ("cargo build --release -p bitnet-cli",
     ["How do I build it?", "How do I compile it?", "What is the build command?", "How to build?", "How can I build bitnet?"]),
    ("cargo test --workspace",
     ["How do I test it?", "How do I run the tests?", "What is the test command?", "How to run tests?", "Which command runs the tests?"]),
    ("With bitnet chat. For another model than me, name its folder: bitnet chat -m FOLDER.",
     ["How do I chat?", "How do I start a chat?", "How can I talk to a model?", "Which command starts a conversation?",
      "How do I chat with a model?"]),
    ("bitnet generate continues the prompt of -p, -f or stdin; --chat-format puts it into the chat template.",
     ["What does bitnet generate do?", "What does generate do?", "How do I continue a prompt?", "How do I generate text?"]),
    ("bitnet convert packs a checkpoint into 2-bit weights: it becomes smaller and loads faster.",
     ["What does bitnet convert do?", "What does convert do?", "How do I pack a checkpoint?", "How do I convert a model?",
      "How do I make a model smaller?"]),
    ("bitnet inspect shows architecture, tensors, sizes, scales and ternary values; --verify checks every checksum.",
     ["What does bitnet inspect do?", "What does inspect do?", "How do I look into a model?", "How do I check the checksums?",
      "How do I verify a model?"]),
    ("bitnet perplexity measures how well the model predicts a text.",
     ["What does bitnet perplexity do?", "What does perplexity do?", "How do I measure perplexity?", "What is perplexity?"]),
    ("bitnet logits writes the logits of every position of a text.",
     ["What does bitnet logits do?", "What does logits do?", "How do I get logits?", "How do I write the logits?"]),
    ("bitnet tokenize gives the token ids of a text, or the text of token ids.",
     ["What does bitnet tokenize do?", "What does tokenize do?", "How do I get token ids?", "How do I tokenize a text?"]),
    ("bitnet bench measures speed.",
     ["What does bitnet bench do?", "What does bench do?", "How do I measure the speed?", "How do I benchmark it?"]),
    ("bitnet COMMAND --help lists every flag.",
     ["How do I get help?", "Where is the help?", "Which flags are there?", "How do I see all options?", "What options are there?"]),
    ("Among others chat, generate, convert, inspect, perplexity, logits, tokenize and bench; bitnet --help lists all of them.",
     ["Which commands are there?", "What commands does bitnet have?", "List the commands.", "What are the commands?",
      "Show me the commands."]),
    ("Text goes to stdout, everything else to stderr.",
     ["Where does the output go?", "What goes to stdout?", "What goes to stderr?", "Where is the output written?"]),
    ("Use --temp 0: then the most probable token is always taken.",
     ["How do I make it greedy?", "How do I turn off sampling?", "How do I set the temperature?", "What does --temp 0 do?"]),
    ("Set --device cpu to run on the processor, or --device cuda to run on the GPU.",
     ["How do I choose the device?", "How do I run it on the CPU?", "How do I run it on the GPU?", "How do I select the GPU?",
      "What does --device do?"]),
    ("BitNetForCausalLM such as microsoft/bitnet-b1.58-2B-4T, and LlamaForCausalLM with BitNet linear layers such as Falcon3-1.58bit and Llama3-8B-1.58.",
     ["Which models are supported?", "What models can it run?", "Which models work?", "Does it run Falcon3?", "Does it run Llama models?",
      "Which architectures are supported?", "What models does it support?"]),
    ("From Hugging Face: for example microsoft/bitnet-b1.58-2B-4T. Then name its folder with -m.",
     ["Where do I get a model?", "Where do I get a real model?", "Where can I download models?", "How do I use a larger model?",
      "How do I get a better model?"]),
    ("No. GGUF files are not supported.",
     ["Does it read GGUF files?", "Is GGUF supported?", "Can I load a GGUF file?", "Does it support GGUF?"]),
    ("Hugging Face folders as they are downloaded: bf16, f16 or f32 master weights and packed weights, single files and shards.",
     ["Which file formats are supported?", "What formats does it read?", "Which checkpoints can it load?", "Does it read safetensors?",
      "What files does it load?"]),
    ("bitnet-model is the crate to depend on; Model::load opens a folder and generator() answers.",
     ["Which crate should I use?", "How do I use it in a program?", "How do I use it from Rust?", "Is there a library?",
      "Which crate do I depend on?", "Can I use it as a library?"]),
    ("The crates are bitnet-cli, bitnet-model, bitnet-cuda, bitnet-cpu, bitnet-kernels, cuda-driver and bitnet-layout.",
     ["Which crates are there?", "What crates does it have?", "List the crates.", "How is the project structured?", "What are the crates?"]),
    ("bitnet-cpu holds matrices, rows and caches on the processor; every path of it gives the same bits.",
     ["What is bitnet-cpu?", "What does bitnet-cpu do?", "What is in bitnet-cpu?"]),
    ("bitnet-cuda is the host side of the GPU: memory, streams, graphs and the engine that holds a model.",
     ["What is bitnet-cuda?", "What does bitnet-cuda do?", "What is in bitnet-cuda?"]),
    ("bitnet-kernels is the device code, written in Rust; an emulator runs it on the host for tests.",
     ["What is bitnet-kernels?", "What does bitnet-kernels do?", "What are the kernels written in?", "How are the kernels tested?",
      "Where are the kernels?"]),
    ("bitnet-layout holds ternary codes, the layouts of words, rows and tiles, and the scalar reference.",
     ["What is bitnet-layout?", "What does bitnet-layout do?", "What is in bitnet-layout?"]),
    ("cuda-driver gives the program its driver functions from libcuda.so.1 at run time.",
     ["What is cuda-driver?", "What does cuda-driver do?", "How is the driver loaded?"]),
    ("The program bitnet: one file a command.",
     ["What is bitnet-cli?", "What does bitnet-cli do?", "What is in bitnet-cli?"]),
    ("Yes. The same request gives the same bits, whatever else is in the batch and however the prompt was cut.",
     ["Is it deterministic?", "Are the results reproducible?", "Does it always give the same answer?", "Is the output the same every time?"]),
    ("Products accumulate in 32-bit integers, so they are exact.",
     ["Is it exact?", "How exact is it?", "How are products computed?", "How accurate is it?", "Are the products exact?"]),
    ("Keys and values are kept in bf16, or in f32 to measure.",
     ["How are keys and values kept?", "What type is the KV cache?", "Which precision has the cache?", "What is in the KV cache?"]),
    ("The tests compare token ids, chat templates, logits, perplexities and greedy tokens with those of Hugging Face transformers.",
     ["How is it tested?", "How is it checked?", "How do you know that it is correct?", "What do the tests compare?", "Is it correct?"]),
    ("A decoded token reads every weight once, so decoding runs at the speed of memory.",
     ["What limits the speed?", "Why is decoding limited by memory?", "What is the bottleneck?", "How fast can it be?"]),
    ("The README has a table of measurements, and docs/benchmarks has the commands and every sample.",
     ["How fast is it?", "Where are the benchmarks?", "Where are the measurements?", "How many tokens per second?", "Is it fast?"]),
    ("MIT or Apache-2.0, at your option.",
     ["What is the license?", "Which license does it have?", "How is it licensed?", "Is it open source?", "Can I use it commercially?"]),
    ("ARCHITECTURE.md says where everything is.",
     ["Where is everything?", "Where do I start reading?", "Where is the architecture described?", "How do I find my way in the code?",
      "What is in ARCHITECTURE.md?"]),
    ("CONTRIBUTING.md says how: it has recipes for a kernel, a CPU path, a model and a command.",
     ["How do I contribute?", "How can I contribute?", "How do I add a kernel?", "How do I add a command?", "How do I add a model?",
      "Can I contribute?"]),
    ("Linux. Other systems are not tested.",
     ["Which operating systems are supported?", "Does it run on Windows?", "Does it run on macOS?", "Does it run on Linux?",
      "Which systems are supported?"]),
    ("No. A model runs on one GPU.",
     ["Can it use several GPUs?", "Does it support multiple GPUs?", "Can I use two GPUs?", "Is multi-GPU supported?"]),
]

ABILITIES = (
    "I can add and subtract numbers of up to three digits, compare them, count, spell a word backwards, "
    "and answer questions about this project."
)

SELF = [
    (ABILITIES,
     ["What can you do?", "What can I ask you?", "What are you able to do?", "Help", "What do you know?", "What are your abilities?",
      "How can you help me?", "What are you good at?", "What can I do here?", "Can you help me?", "What else can you do?"]),
    ("I am a small BitNet b1.58 model that is bundled with this project, to try it out.",
     ["Who are you?", "What are you?", "What is your name?", "Introduce yourself.", "Are you a robot?", "Are you an AI?",
      "Which model are you?", "Are you human?", "What model is this?", "Are you ChatGPT?"]),
    ("The script tools/train-demo/train.py trained me, on text that it generates itself.",
     ["Who made you?", "How were you trained?", "Who trained you?", "Where do you come from?", "What were you trained on?",
      "Who created you?"]),
    ("I am small: six layers of width 384 and 9.7 million ternary weights.",
     ["How large are you?", "How big are you?", "How many parameters do you have?", "How many layers do you have?", "How many weights do you have?"]),
    ("Hello! " + ABILITIES,
     ["Hello", "Hi", "Hey", "Hello!", "Hi there", "Good morning", "Good evening", "Good afternoon", "Hello there!", "Greetings", "Hey there"]),
    ("I am well, thank you. What shall I compute?",
     ["How are you?", "How do you do?", "How is it going?", "Are you well?", "How are you doing today?"]),
    ("You are welcome.", ["Thank you", "Thanks", "Thanks!", "Thank you very much", "Thanks a lot", "Many thanks", "Great, thanks"]),
    ("Goodbye!", ["Goodbye", "Bye", "Bye!", "See you", "See you later", "Good night", "I have to go"]),
    ("Good.", ["OK", "Okay", "Good", "Great", "Nice", "Right", "Correct", "Well done", "Yes", "Cool", "I see"]),
    ("I am sorry. I am a small model and make mistakes.",
     ["No", "That is wrong", "Wrong", "That is not correct", "You are wrong", "That is not right"]),
]

UNKNOWN = "I do not know. " + ABILITIES
TOO_LARGE = "I only know numbers of up to three digits."
OTHER_ARITHMETIC = "I only add and subtract whole numbers, two at a time."

# Questions outside of what it knows; {x} stands for a thing of THINGS or a made-up word.
OUTSIDE = [
    "What is the capital of {x}?", "Who wrote {x}?", "Who is {x}?", "What is {x}?", "Tell me a joke", "Tell me a joke about {x}",
    "Tell me a story", "Tell me a story about {x}", "Write a poem", "Write a poem about {x}", "Write an essay about {x}",
    "What is the weather like?", "What is the weather in {x}?", "What time is it?", "What day is it today?", "Translate {x} into {y}",
    "How old is {x}?", "Where is {x}?", "Where do {x} live?", "When was {x} born?", "When was {x} invented?", "How do I cook {x}?",
    "Give me a recipe for {x}", "What does {x} mean?", "Why is {x} {y}?", "Why is the sky blue?", "What is the meaning of life?",
    "Who is the president of {x}?", "Do you like {x}?", "Is {x} better than {y}?", "How far is {x} from {y}?", "Sing a song",
    "What is your favourite {x}?", "Summarize {x}", "Explain {x} to me", "Write a program that sorts a list", "Write code in {x}",
    "How many {x} are there in {y}?", "How much does {x} cost?", "Who won the {x}?", "What colour is {x}?", "Name five {x}",
    "Can you drive a {x}?", "What is the population of {x}?", "Which {x} is the best?", "Tell me about {x}", "Define {x}",
    "What is the difference between {x} and {y}?", "I like {x}", "My name is {x}", "{x}", "{x} {y}", "Describe {x}", "Solve {x}",
    "What do you think about {x}?", "What happened in {x}?", "How do {x} work?", "Can {x} {y}?", "Does {x} {y}?", "Please {x} the {y}",
    "How do I {x} a {y}?", "Are {x} and {y} the same?", "Recommend me a {x}", "What is the square root of {x}?", "Draw a {x}",
]
THINGS = (
    "France Germany Paris Rome China Japan Africa London Goethe Shakespeare Hamlet Faust Einstein Newton Napoleon Mozart cats dogs "
    "birds horses elephants fish bread soup pizza cheese coffee tea rice cake apples bananas football chess music love war peace "
    "history physics chemistry biology mathematics philosophy religion politics money the moon the sun Mars the sea the war a tree "
    "a car a house a river a mountain the telephone electricity gravity light water gold iron English French Spanish Latin Greek "
    "blue red green fast slow good bad Linux Windows Java JavaScript Haskell quantum computers black holes dinosaurs world cup "
    "olympics winter summer Monday yesterday tomorrow Berlin New York Mount Everest the Nile"
).split()

SYSTEM = [
    "You are a helpful assistant.", "You are a friendly assistant.", "You are a calculator.", "Answer briefly.", "Be concise.",
    "You are a helpful AI assistant. Answer the questions of the user.", "You answer questions about this project.",
    "You are BitNet, a language model.", "Always be polite.", "Answer in English.", "You are a teacher of arithmetic.",
    "You are an expert. Think step by step.", "Do not make mistakes.", "You are a pirate.",
]

WORDS = (
    "garden window table chair house river mountain flower bottle pencil paper letter number water bread butter cheese apple orange "
    "lemon cherry banana potato tomato onion pepper sugar coffee kitchen bathroom bedroom door floor ceiling wall roof street city "
    "village country island ocean beach forest desert valley hill bridge tower castle church school office market station airport "
    "train plane boat ship bicycle engine wheel road path field farm horse cow sheep goat chicken duck goose rabbit mouse cat dog "
    "bird eagle sparrow tiger lion elephant monkey snake turtle frog fish shark whale butterfly spider insect planet moon star sun "
    "cloud rain snow wind storm thunder lightning summer winter spring autumn morning evening night yesterday today tomorrow week "
    "month year hour minute second clock music song dance painting picture camera movie theater book story poem language word "
    "sentence question answer teacher student doctor nurse farmer baker butcher driver pilot sailor soldier king queen prince "
    "brother sister mother father daughter son uncle aunt cousin friend neighbor stranger child baby person people hand finger "
    "arm leg foot head face nose mouth tooth tongue ear eye hair heart blood bone skin shirt trousers jacket coat shoe hat glove "
    "ring watch pocket button needle thread hammer nail screw saw knife fork spoon plate cup glass bowl basket bucket candle lamp "
    "mirror carpet curtain pillow blanket towel soap brush comb key lock chain rope ladder stone metal silver golden iron copper "
    "wood plastic rubber leather cotton wool silk computer keyboard printer network program model weight tensor kernel thread "
    "memory rust token vector matrix binary integer float string layer logic compiler library crate module function"
).split()
