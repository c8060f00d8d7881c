//! `bitnet` at a terminal, as a person uses it: a pseudoterminal with somebody typing.
#![cfg(unix)]

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::pty::{Winsize, openpty};
use nix::sys::signal::{SigHandler, Signal, kill, signal as handle};
use nix::unistd::Pid;

const QUESTION: &str = "Is the chimney of the old brickworks still used?";
const ANSWER: &str = "No. A pair of storks lives on it now.";

/// How long a busy machine may take for anything that is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

fn folder(name: &str) -> String {
    format!(
        "{}/../bitnet-model/tests/oracle/{name}",
        env!("CARGO_MANIFEST_DIR")
    )
}

/// A running program and what it has shown since it was last looked at.
struct Session {
    child: Child,
    keyboard: File,
    screen: Receiver<Vec<u8>>,
    seen: String,
}

impl Session {
    /// `bitnet <command> -m <reference folder> --temp 0 <args>`.
    fn start(command: &str, args: &[&str], environment: &[(&str, &str)]) -> Self {
        let folder = folder("bitnet-bf16");
        let common = [command, "-m", &folder, "--temp", "0"];
        Self::of(&[&common, args].concat(), environment)
    }

    /// `bitnet <args>` on a wide terminal.
    fn of(args: &[&str], environment: &[(&str, &str)]) -> Self {
        Self::wide(200, args, environment)
    }

    /// `bitnet <args>` on a terminal of `columns`.
    fn wide(columns: u16, args: &[&str], environment: &[(&str, &str)]) -> Self {
        let size = Winsize {
            ws_row: 30,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pty = openpty(Some(&size), None).unwrap();
        let side = || pty.slave.try_clone().unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_bitnet"))
            .args(args)
            .env("TERM", "xterm-256color")
            .env_remove("NO_COLOR")
            .env("BITNET_HISTORY", "")
            .env("BITNET_CONFIG", "")
            .envs(environment.iter().copied())
            .stdin(side())
            .stdout(side())
            .stderr(side())
            .spawn()
            .unwrap();
        drop(pty.slave);
        let keyboard = File::from(pty.master);
        let mut display = keyboard.try_clone().unwrap();
        let (sender, screen) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // The terminal of a program that ended gives an error on Linux.
            while let Ok(n @ 1..) = display.read(&mut buffer) {
                if sender.send(buffer[..n].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self {
            child,
            keyboard,
            screen,
            seen: String::new(),
        }
    }

    fn type_in(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    /// What is shown up to the end of `text`, once it is there.
    fn until(&mut self, text: &str) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.seen.find(text) {
                let rest = self.seen.split_off(at + text.len());
                return std::mem::replace(&mut self.seen, rest);
            }
            let left = end.saturating_duration_since(Instant::now());
            match self.screen.recv_timeout(left) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(e) => panic!("waited for {text:?}: {e}; shown was {:?}", self.seen),
            }
        }
    }

    /// Waits for the first prompt. Progress bars look like prompts, so what stands between them comes first.
    fn until_ready(&mut self) {
        self.until("of several lines");
        self.until("> ");
    }

    /// Ctrl-C while the program is not reading keys: there the terminal would send the signal.
    fn interrupt(&self) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), Signal::SIGINT).unwrap();
    }

    fn end(&mut self) -> ExitStatus {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < end, "it does not end; shown was {:?}", self.seen);
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // A program that ended already cannot be killed, and need not be.
        let _ = self.child.kill();
    }
}

#[test]
fn a_conversation_with_line_editing() {
    let history = tempfile::tempdir().unwrap();
    let history = history.path().join("new/history");
    let mut session = Session::start("chat", &[], &[("BITNET_HISTORY", history.to_str().unwrap())]);
    session.until("loading");
    session.until_ready();
    session.type_in(QUESTION);
    session.type_in("\r");
    session.until(ANSWER);
    assert!(session.until("first token").contains("\x1b[2mprompt 27 tokens"));
    session.until("> ");

    session.type_in("first \\\rsecond\r");
    session.until("NoNoNo");
    session.interrupt();
    session.until("(stopped)");
    session.until("> ");

    session.type_in("/he\t\r");
    session.until("forget the conversation");
    session.until("> ");
    session.type_in("\x03");
    session.until("(Ctrl-C again or /exit leaves)");
    session.until("> ");
    // What is typed ahead is not lost.
    session.type_in("/clear\r/bye\r");
    session.until("(forgotten)");
    assert!(session.end().success());
    let history = std::fs::read_to_string(history).unwrap();
    for line in [QUESTION, "/help", "/clear"] {
        assert!(history.contains(line), "{history}");
    }
}

#[test]
fn a_newcomer_has_a_model() {
    let mut session = Session::of(&["chat", "--cpu"], &[]);
    session.until("no model given: using the demo model inside this program");
    session.until("demo-model on cpu");
    session.until_ready();
    session.type_in("What is 17 + 25?\r");
    session.until("17 + 25 = 42");
    session.until("first token");
    session.until("> ");
    session.type_in("\"\"\"\rplus\r");
    session.type_in("20?\"\"\"\r");
    session.until("first token");
    session.until("> ");
    session.type_in("\x03");
    session.until("(Ctrl-C again or /exit leaves)");
    session.until("> ");
    session.type_in("\x03");
    assert!(session.end().success());
}

#[test]
fn long_work_shows_how_far_it_is() {
    let out = tempfile::tempdir().unwrap();
    let out = out.path().join("packed");
    let args = ["convert", &folder("bitnet-bf16"), "-o", out.to_str().unwrap()];
    let mut session = Session::of(&args, &[]);
    let shown = session.until("converting [") + &session.until("wrote ");
    assert!(shown.contains("/s eta "), "{shown:?}");
    assert!(session.end().success());
    let mut session = Session::of(&["inspect", "--verify", out.to_str().unwrap()], &[]);
    session.until("verifying [");
    session.until("architecture");
    assert!(session.end().success());
}

#[test]
fn control_c_ends_a_single_answer() {
    let mut session = Session::start("generate", &["-p", "The", "--ignore-eos", "-t", "1"], &[]);
    session.until("reading the prompt");
    session.until("\r\x1b[2K");
    session.until("e");
    session.interrupt();
    session.until("first token");
    assert_eq!(session.end().code(), Some(130));
}

#[test]
fn plain_terminals_get_plain_text() {
    let mut session = Session::start("chat", &["--simple-io", "-t", "2"], &[]);
    session.until_ready();
    session.type_in(QUESTION);
    session.type_in("\n");
    let shown = session.until("threads)") + &session.until("> ");
    assert!(shown.contains(ANSWER) && !shown.contains('\x1b'), "{shown:?}");
    session.type_in("\x04");
    assert!(session.end().success());

    let mut session = Session::start("chat", &["-t", "2"], &[("NO_COLOR", "1")]);
    session.until_ready();
    session.type_in(QUESTION);
    session.type_in("\r");
    let shown = session.until("threads)");
    assert!(
        !shown.contains("\x1b[2m") && !shown.contains("\x1b[1;32m"),
        "{shown:?}"
    );
    // Ctrl-D means the end only to a program that reads.
    session.until("> ");
    session.type_in("\x04");
    assert!(session.end().success());
}

#[test]
fn signals_leave_the_terminal_and_the_history_as_they_should_be() {
    use nix::sys::termios::tcgetattr;
    for (signal, status) in [
        (Signal::SIGTERM, 143),
        (Signal::SIGHUP, 129),
        (Signal::SIGQUIT, 131),
        (Signal::SIGINT, 130),
    ] {
        // Shells start what runs in the background with some of these ignored, and so does nohup.
        // SAFETY: no handler is installed.
        unsafe { handle(signal, SigHandler::SigDfl) }.unwrap();
        let history = tempfile::tempdir().unwrap();
        let history = history.path().join("history");
        let mut session = Session::of(
            &["chat", "--cpu"],
            &[("BITNET_HISTORY", history.to_str().unwrap())],
        );
        let flags = |session: &Session| tcgetattr(&session.keyboard).unwrap().local_flags;
        let before = flags(&session);
        session.until_ready();
        session.type_in("What is 17 + 25?\r");
        session.until("first token");
        session.until("> ");
        assert_ne!(flags(&session), before, "the editor reads keys");
        kill(Pid::from_raw(session.child.id().try_into().unwrap()), signal).unwrap();
        assert_eq!(session.end().code(), Some(status));
        session.until("\x1b[?2004l\r\n");
        assert_eq!(flags(&session), before, "{signal}");
        assert!(std::fs::read_to_string(&history).unwrap().contains("17 + 25"));
    }
}

#[test]
fn eighty_columns_are_enough() {
    let mut session = Session::wide(80, &["chat", "--cpu"], &[("NO_COLOR", "1")]);
    let shown = session.until("several\r\nlines\r\n");
    session.until("> ");
    session.type_in("What is 17 + 25?\r");
    let shown = shown + &session.until("42\r\n") + &session.until("\r\n");
    session.until("> ");
    session.type_in("/nonsense\r");
    let shown = shown + &session.until("slash\r\n");
    for line in shown.split("\r\n").filter(|line| !line.contains('\x1b')) {
        assert!(line.chars().count() <= 80, "{line:?}");
    }
    assert!(
        shown.contains("tokens/s") && shown.contains("| answer "),
        "{shown}"
    );
    session.until("> ");
    session.type_in("/exit\r");
    assert!(session.end().success());
}

#[test]
fn a_history_that_is_no_file_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let mut session = Session::of(&["chat", "--cpu"], &[("BITNET_HISTORY", pipe.to_str().unwrap())]);
    session.until("warning: no history is kept: ");
    session.until_ready();
    session.type_in("/exit\r");
    assert!(session.end().success());
}
