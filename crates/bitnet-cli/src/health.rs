//! `bitnet health`: whether a server takes requests, for containers, whose images have no other client.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::failure::hinted;
use crate::serve::{host, prefix, seconds};
use crate::terminal::say;

/// Ask a server whether it takes requests
///
/// It asks /health of `bitnet serve`, with the same settings for host, port and prefix. The exit status is 0 when it does and 1 when
/// it does not or is not there.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Name or address of the server, or the path of its Unix socket; 0.0.0.0 and :: are this machine
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1", value_parser = host)]
    host: String,
    /// Its port
    #[arg(long, value_name = "PORT", default_value = "8080")]
    port: u16,
    /// What stands before its paths
    #[arg(long, value_name = "PREFIX", value_parser = prefix)]
    api_prefix: Option<String>,
    /// Most seconds to wait
    #[arg(long, value_name = "S", default_value = "5", value_parser = seconds)]
    max_time: Duration,
    /// Print nothing
    #[arg(short, long)]
    quiet: bool,
}

/// Bytes of an answer that are read; /health has fewer.
const MOST: u64 = 64 << 10;

/// Runs `bitnet health`.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let path = format!("{}/health", args.api_prefix.as_deref().unwrap_or_default());
    let answer = ask(args, &path).map_err(|error| {
        hinted(
            format!("no server answers at {}: {error:#}", args.place()),
            "`bitnet serve` starts one; --host and --port say where it is",
        )
    })?;
    let status = answer
        .lines()
        .next()
        .unwrap_or_default()
        .split(' ')
        .nth(1)
        .unwrap_or_default()
        .to_owned();
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    if status == "200" {
        if !args.quiet {
            say!("{}: ok", args.place());
        }
        return Ok(ExitCode::SUCCESS);
    }
    let error: Option<serde_json::Value> = serde_json::from_str(body).ok();
    let message = error.as_ref().and_then(|e| e.pointer("/error/message")?.as_str());
    if !args.quiet {
        say!("{}: status {status}: {}", args.place(), message.unwrap_or(body));
    }
    Ok(ExitCode::FAILURE)
}

impl Args {
    fn place(&self) -> String {
        if self.host.ends_with(".sock") {
            return self.host.clone();
        }
        let host = self.reachable();
        if host.contains(':') {
            format!("[{host}]:{}", self.port)
        } else {
            format!("{host}:{}", self.port)
        }
    }

    /// A name under which a server of this setting can be reached.
    fn reachable(&self) -> &str {
        let host = self.host.trim_start_matches('[').trim_end_matches(']');
        match host {
            "0.0.0.0" => "127.0.0.1",
            "::" => "::1",
            host => host,
        }
    }
}

trait Connection: Read + Write {
    fn set_timeout(&self, time: Duration) -> std::io::Result<()>;
}

impl Connection for TcpStream {
    fn set_timeout(&self, time: Duration) -> std::io::Result<()> {
        self.set_read_timeout(Some(time))?;
        self.set_write_timeout(Some(time))
    }
}

#[cfg(unix)]
impl Connection for std::os::unix::net::UnixStream {
    fn set_timeout(&self, time: Duration) -> std::io::Result<()> {
        self.set_read_timeout(Some(time))?;
        self.set_write_timeout(Some(time))
    }
}

/// The whole answer to a GET of `path`.
fn ask(args: &Args, path: &str) -> anyhow::Result<String> {
    let deadline = Instant::now() + args.max_time;
    let left = || {
        deadline
            .saturating_duration_since(Instant::now())
            .max(Duration::from_millis(1))
    };
    let mut connection = connect(args, left())?;
    connection.set_timeout(left())?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    connection.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    let mut piece = [0; 4096];
    loop {
        connection.set_timeout(left())?;
        anyhow::ensure!(Instant::now() < deadline, "it did not answer in time");
        match connection.read(&mut piece).context("it did not answer")? {
            0 => break,
            n => answer.extend_from_slice(&piece[..n]),
        }
        if answer.len() as u64 > MOST {
            break;
        }
    }
    let answer = String::from_utf8_lossy(&answer).into_owned();
    anyhow::ensure!(
        answer.starts_with("HTTP/1."),
        "what answers there is no server of HTTP"
    );
    Ok(answer)
}

fn connect(args: &Args, time: Duration) -> anyhow::Result<Box<dyn Connection>> {
    #[cfg(unix)]
    if args.host.ends_with(".sock") {
        return Ok(Box::new(std::os::unix::net::UnixStream::connect(&args.host)?));
    }
    let mut last = None;
    for address in (args.reachable(), args.port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, time) {
            Ok(stream) => return Ok(Box::new(stream)),
            Err(error) => last = Some(error),
        }
    }
    match last {
        Some(error) => Err(error.into()),
        None => anyhow::bail!("the name has no address"),
    }
}
