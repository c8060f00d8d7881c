//! The cache is the one of Python's `huggingface_hub`: what either fetches, the other finds.

mod server;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bitnet_hub::{Hub, Settings, Verify};
use server::{Server, etag};

/// Python with `huggingface_hub`, which gets the server and the cache from the environment.
fn python(server: &Server, cache: &Path, program: &str) -> Child {
    let interpreter =
        std::env::var_os("BITNET_HUB_PYTHON").expect("BITNET_HUB_PYTHON names a Python with huggingface_hub");
    let mut command = Command::new(interpreter);
    let program = format!("from huggingface_hub import *\n{program}");
    command.args(["-c", &program]).stdout(Stdio::piped());
    command
        .env("HF_ENDPOINT", &server.url)
        .env("HF_HUB_CACHE", cache)
        .env("HF_HUB_DISABLE_PROGRESS_BARS", "1");
    // The test has no such storage; nothing else is to be asked for.
    command
        .env("HF_HUB_DISABLE_XET", "1")
        .env("HF_HUB_DISABLE_TELEMETRY", "1");
    command.env("HF_HOME", cache.join("home")).spawn().unwrap()
}

/// Requests for the model. Python asks for some things of its own, too.
fn asked(server: &Server) -> usize {
    let seen = server.seen();
    seen.iter()
        .filter(|seen| seen.path.contains("/a/m") || seen.path.starts_with("cdn"))
        .count()
}

fn said(child: Child) -> String {
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
#[ignore = "needs Python's huggingface_hub: BITNET_HUB_PYTHON names the interpreter, as .ci/run does"]
fn python_and_this_program_share_a_cache() {
    let (server, folder) = (Server::start(), tempfile::tempdir().unwrap());
    let weights: Vec<u8> = (0..3_000_000_u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let files: [(&str, &[u8]); 4] = [
        ("README.md", b"# m"),
        ("config.json", b"{}"),
        ("1_Pooling/config.json", b"[]"),
        ("model.safetensors", &weights),
    ];
    let commit = server.commit("a/m", &files);
    let (name, cache) = ("a/m".parse().unwrap(), folder.path());
    let hub = Hub::new(Settings {
        cache: cache.to_owned(),
        endpoint: server.url.clone(),
        token: None,
        offline: false,
        symlinks: true,
        timeout: Duration::from_secs(30),
        certificates: None,
    });

    // What we fetch, Python finds without a connection.
    let found = hub.pull(&name, Verify::Arriving, &mut |_| {}).unwrap();
    server.seen();
    let program = "print(snapshot_download('a/m', local_files_only=True))\n\
         for f in ['config.json', 'model.safetensors', '1_Pooling/config.json']:\n    \
         print(hf_hub_download('a/m', f, local_files_only=True))\n\
         c = scan_cache_dir()\nprint(len(c.warnings), c.size_on_disk, [(r.repo_id, sorted(list(r.revisions)[0].refs)) for r in c.repos])";
    let path = found.path.display();
    let expected = format!(
        "{path}\n{path}/config.json\n{path}/model.safetensors\n{path}/1_Pooling/config.json\n0 3000004 [('a/m', ['main'])]"
    );
    assert_eq!(said(python(&server, cache, program)), expected);
    assert_eq!(asked(&server), 0);

    // Python removes it; what Python fetches, we find without a connection, and remove.
    let program = format!("scan_cache_dir().delete_revisions('{commit}').execute()");
    said(python(&server, cache, &program));
    assert_eq!(hub.find(&name).unwrap(), None);
    said(python(&server, cache, "snapshot_download('a/m')"));
    server.seen();
    let theirs = hub.get(&name, &mut |_| panic!("it is there")).unwrap();
    assert_eq!((&theirs.path, theirs.fetched), (&found.path, 0));
    assert_eq!(
        std::fs::read(theirs.path.join("model.safetensors")).unwrap(),
        weights
    );
    assert_eq!(hub.models().unwrap().len(), 1);
    assert_eq!(asked(&server), 0);
    assert_eq!(hub.pull(&name, Verify::All, &mut |_| {}).unwrap().fetched, 0);
    hub.removal(&name).unwrap().carry_out().unwrap();
    assert_eq!(
        said(python(&server, cache, "print(len(scan_cache_dir().repos))")),
        "0"
    );

    // Both at the same time, with the same locks: one fetches the weights, and both have them.
    server.pace(Duration::from_millis(30));
    server.seen();
    let python = python(&server, cache, "print(snapshot_download('a/m'))");
    let weights_asked = || {
        server
            .seen()
            .iter()
            .any(|seen| seen.path == format!("cdn/{}", etag(&weights)))
    };
    while !weights_asked() {
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut waited = false;
    let ours = hub.pull(&name, Verify::Arriving, &mut |event| {
        waited |= matches!(event, bitnet_hub::Event::Waiting { .. })
    });
    assert_eq!(
        (ours.unwrap().path.display().to_string(), waited),
        (said(python), true)
    );
    assert!(!weights_asked());
}
