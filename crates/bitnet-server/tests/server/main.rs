//! A server in this process, seen through its socket.

mod answers;
mod http;
mod large;
mod life;
mod support;
