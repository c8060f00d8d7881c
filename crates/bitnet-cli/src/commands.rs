//! The commands of a conversation: what the line editor completes, `/help` lists and the loop obeys.

/// Name, argument and explanation of every command.
pub(crate) const COMMANDS: [(&str, &str, &str); 10] = [
    ("/help", "", "show this"),
    ("/exit", "", "leave (also /quit, /bye, Ctrl-D)"),
    ("/clear", "", "forget the conversation"),
    ("/system", "[TEXT]", "set the system message, or show it"),
    ("/retry", "", "answer the last message again"),
    ("/stats", "", "turn the statistics on or off"),
    ("/temp", "T", "temperature; 0 always takes the most likely token"),
    ("/topk", "K", "draw from the K most likely tokens; 0 from all"),
    (
        "/topp",
        "P",
        "draw from the most likely tokens of probability P; 1 from all",
    ),
    ("/seed", "N", "seed of the next answer"),
];
