//! Where foreign grammars are read: on a thread with a stack of known size.

use std::sync::{Mutex, PoisonError};

use crate::error::GrammarError;

/// The library follows rules that name rules by recursion. What a grammar of the longest text that is taken can make it use, about
/// 5 KiB for each rule and 2 KiB for each level of a schema, is less. The system gives it as it is used.
const STACK: usize = 512 << 20;

/// Grammars that are read at a time, so that the memory of all is that of one.
static ONE: Mutex<()> = Mutex::new(());

/// Runs `work` where it can neither overflow a stack nor end the program by a panic.
pub(crate) fn guarded<T: Send>(
    work: impl FnOnce() -> Result<T, GrammarError> + Send,
) -> Result<T, GrammarError> {
    let _turn = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("bitnet-grammar".to_owned())
            .stack_size(STACK)
            .spawn_scoped(scope, work)
            .map_err(|error| GrammarError::new(format!("the system has no thread to read it: {error}")))?;
        thread.join().unwrap_or_else(|_| {
            Err(GrammarError::new(
                "reading it failed: there is a mistake in this program",
            ))
        })
    })
}
