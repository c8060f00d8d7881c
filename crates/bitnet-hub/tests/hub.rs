//! Fetching, finding and removing models, against a hub on this machine that misbehaves as networks do.

mod server;

use std::path::PathBuf;
use std::time::Duration;

use bitnet_hub::{Error, Event, Format, Found, Hub, ModelName, Result, Secret, Settings, Verify};
use server::{Fault, Server, etag};

/// A hub with its server and an empty cache.
struct Bench {
    server: Server,
    hub: Hub,
    cache: tempfile::TempDir,
}

fn bench() -> Bench {
    bench_with(|_| {})
}

fn bench_with(change: impl FnOnce(&mut Settings)) -> Bench {
    let (server, cache) = (Server::start(), tempfile::tempdir().unwrap());
    let mut settings = Settings {
        cache: cache.path().to_owned(),
        endpoint: server.url.clone(),
        token: None,
        offline: false,
        symlinks: true,
        timeout: Duration::from_secs(10),
        certificates: None,
    };
    change(&mut settings);
    Bench {
        server,
        hub: Hub::new(settings),
        cache,
    }
}

impl Bench {
    fn pull(&self, name: &str) -> Result<Found> {
        self.hub.pull(&model(name), Verify::Arriving, &mut |_| {})
    }

    fn repository(&self) -> PathBuf {
        self.cache.path().join("models--a--m")
    }

    fn blob(&self, bytes: &[u8]) -> PathBuf {
        self.repository().join("blobs").join(etag(bytes))
    }

    fn blobs(&self) -> usize {
        std::fs::read_dir(self.repository().join("blobs")).map_or(0, Iterator::count)
    }
}

fn model(name: &str) -> ModelName {
    name.parse().unwrap()
}

/// Bytes that are no others.
fn bytes(n: usize, seed: u8) -> Vec<u8> {
    (0..n).map(|i| (i * 31 / 7) as u8 ^ seed).collect()
}

const FOLDER: [&str; 3] = ["config.json", "tokenizer.json", "model.safetensors"];

/// A folder with a model, and what running it does not need.
fn commit(server: &Server, weights: &[u8]) -> String {
    let tokenizer = bytes(9000, 3);
    server.commit(
        "a/m",
        &[
            (".gitattributes", b"x"),
            ("README.md", b"# m"),
            ("config.json", b"{}"),
            ("tokenizer.json", &tokenizer),
            ("model.safetensors", weights),
            ("pytorch_model.bin", &tokenizer),
            ("original/model.safetensors", weights),
        ],
    )
}

#[test]
fn a_pull_fetches_what_is_needed_and_nothing_fetches_it_again() {
    let bench = bench();
    let weights = bytes(300_000, 1);
    let commit = commit(&bench.server, &weights);
    let name = model("a/m");
    assert_eq!(bench.hub.find(&name).unwrap(), None);
    let (mut last, mut begun) = ((0, 0), 0);
    let mut watch = |event: Event<'_>| match event {
        Event::Fetching { done, total, .. } => {
            assert!(done >= last.0 && done <= total);
            last = (done, total);
        }
        Event::Begins { bytes, .. } => begun = bytes,
        _ => {}
    };
    let found = bench.hub.get(&name, &mut watch).unwrap();
    assert_eq!((last, begun), ((309_002, 309_002), 300_000));
    let snapshot = bench.repository().join("snapshots").join(&commit);
    assert_eq!(
        (&found.path, found.format, &found.commit, found.fetched),
        (&snapshot, Format::Safetensors, &commit, 309_002)
    );
    let mut files: Vec<_> = std::fs::read_dir(&snapshot)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    files.sort();
    assert_eq!(files, ["config.json", "model.safetensors", "tokenizer.json"]);
    #[cfg(unix)]
    assert_eq!(
        std::fs::read_link(snapshot.join("model.safetensors")).unwrap(),
        PathBuf::from("../../blobs").join(etag(&weights))
    );
    assert_eq!(
        std::fs::read(found.path.join("model.safetensors")).unwrap(),
        weights
    );
    assert_eq!(
        std::fs::read_to_string(bench.repository().join("refs/main")).unwrap(),
        commit
    );
    let paths: Vec<_> = bench.server.seen().into_iter().map(|seen| seen.path).collect();
    assert!(
        !paths
            .iter()
            .any(|path| path.contains("README") || path.contains(".bin") || path.contains("original"))
    );

    let again = bench
        .hub
        .get(&name, &mut |_| panic!("there is nothing to wait for"))
        .unwrap();
    assert_eq!((again.path, again.fetched), (found.path, 0));
    assert_eq!(
        bench
            .hub
            .get(&model(&format!("a/m@{commit}")), &mut |_| {})
            .unwrap()
            .commit,
        commit
    );
    assert!(bench.server.seen().is_empty());
    // A pull asks whether there is a newer commit, and fetches no file.
    assert_eq!(bench.pull("a/m").unwrap().fetched, 0);
    assert_eq!(bench.server.seen().len(), 1);
}

#[test]
fn the_token_goes_to_the_hub_and_to_nobody_else() {
    let bench = bench_with(|settings| settings.token = Secret::new("hf_secret"));
    commit(&bench.server, &bytes(5000, 1));
    bench.server.protect("a/m", "hf_secret", false);
    bench.pull("a/m").unwrap();
    let seen = bench.server.seen();
    assert!(seen.iter().any(|seen| seen.path.starts_with("cdn/")));
    for seen in seen {
        let expected = seen
            .path
            .starts_with("hub/")
            .then(|| "Bearer hf_secret".to_owned());
        assert_eq!(seen.authorization, expected, "{}", seen.path);
    }
}

#[test]
fn a_cut_connection_is_taken_up_where_it_ended() {
    let bench = bench();
    let weights = bytes(500_000, 1);
    commit(&bench.server, &weights);
    let cdn = format!("GET cdn/{}", etag(&weights));
    bench.server.fault(&cdn, Fault::Cut(200_000));
    bench.server.fault(&cdn, Fault::Cut(100_000));
    // A server that knows no ranges: from the beginning again.
    bench.server.fault(&cdn, Fault::NoRange);
    let found = bench.pull("a/m").unwrap();
    assert_eq!(
        std::fs::read(found.path.join("model.safetensors")).unwrap(),
        weights
    );
    let ranges = bench
        .server
        .seen()
        .into_iter()
        .filter(|seen| cdn.contains(&seen.path))
        .map(|seen| seen.range);
    assert_eq!(
        ranges.flatten().collect::<Vec<_>>(),
        ["bytes=200000-", "bytes=300000-"]
    );
}

#[test]
fn what_arrived_before_an_error_is_kept_for_the_next_pull() {
    let bench = bench();
    let weights = bytes(500_000, 1);
    commit(&bench.server, &weights);
    let cdn = format!("GET cdn/{}", etag(&weights));
    bench.server.fault(&cdn, Fault::Cut(200_000));
    for _ in 0..4 {
        bench.server.fault(&cdn, Fault::Cut(0));
    }
    let error = bench.pull("a/m").unwrap_err();
    assert!(matches!(error, Error::Cut { at: 200_000, .. }), "{error}");
    assert!(error.remedy().contains("goes on from there"));
    // It is not a model yet, and says what is missing.
    assert_eq!(bench.hub.find(&model("a/m")).unwrap(), None);
    let begun = bench.hub.models().unwrap();
    assert_eq!((begun.len(), begun[0].format, begun[0].bytes), (1, None, 200_000));
    bench.server.seen();
    assert_eq!(bench.pull("a/m").unwrap().fetched, 300_000);
    assert!(
        bench
            .server
            .seen()
            .iter()
            .any(|seen| seen.range.as_deref() == Some("bytes=200000-"))
    );
    assert!(!bench.blob(&weights).with_added_extension("incomplete").exists());
}

#[test]
fn bytes_that_are_not_those_announced_do_not_stay() {
    let bench = bench();
    let weights = bytes(50_000, 1);
    commit(&bench.server, &weights);
    bench
        .server
        .fault(&format!("GET cdn/{}", etag(&weights)), Fault::Wrong);
    let error = bench.pull("a/m").unwrap_err();
    assert!(
        matches!(&error, Error::Damaged { file, .. } if file == "model.safetensors"),
        "{error}"
    );
    assert_eq!(bench.blobs(), 2);
    // Git's digests of small files, too.
    let other = self::bench();
    commit(&other.server, &weights);
    other.server.fault("GET hub/api/resolve-cache", Fault::Wrong);
    assert!(matches!(other.pull("a/m"), Err(Error::Damaged { file, .. }) if file == "config.json"));
    // A begun file that is not the beginning of the right one is fetched from its beginning.
    let partial = bench.blob(&weights).with_added_extension("incomplete");
    for wrong in [vec![7; 1000], vec![7; 50_000], vec![7; 60_000]] {
        std::fs::write(&partial, wrong).unwrap();
        let found = bench.pull("a/m").unwrap();
        assert_eq!(
            std::fs::read(found.path.join("model.safetensors")).unwrap(),
            weights
        );
        bench.hub.removal(&model("a/m")).unwrap().carry_out().unwrap();
        std::fs::create_dir_all(partial.parent().unwrap()).unwrap();
    }
}

#[test]
fn what_was_damaged_in_the_cache_is_found_and_mended() {
    let bench = bench();
    let weights = bytes(50_000, 1);
    commit(&bench.server, &weights);
    let found = bench.pull("a/m").unwrap();
    let mut damaged = weights.clone();
    damaged[40_000] ^= 4;
    std::fs::write(bench.blob(&weights), damaged).unwrap();
    assert_eq!(bench.pull("a/m").unwrap().fetched, 0);
    let mended = bench.hub.pull(&model("a/m"), Verify::All, &mut |_| {}).unwrap();
    assert_eq!(mended.fetched, 50_000);
    assert_eq!(
        std::fs::read(found.path.join("model.safetensors")).unwrap(),
        weights
    );
}

#[test]
fn refusals_name_the_model_and_the_remedy() {
    let bench = bench();
    commit(&bench.server, &bytes(5000, 1));
    bench
        .server
        .commit("a/gguf", &[("x-q8_0.gguf", b"GGUF"), ("x-f16.gguf", b"GGUF")]);
    bench
        .server
        .commit("a/pickle", &[("config.json", b"{}"), ("pytorch_model.bin", b"x")]);
    bench.server.commit("a/gated", &[("m.gguf", b"GGUF")]);
    bench.server.protect("a/gated", "hf_good", true);
    let host = bench.server.url.trim_start_matches("http://");
    for (name, error, remedy) in [
        (
            "a/none",
            format!("a/none: {host} has no such model, or does not show it without a token"),
            "check the spelling; a private model needs HF_TOKEN",
        ),
        (
            "a/m@v9",
            "a/m: there is no revision `v9`".into(),
            "branches, tags and commits",
        ),
        (
            "a/m:q9",
            "a/m: no file of it is called or quantized as `q9`".into(),
            "it has no GGUF files",
        ),
        (
            "a/gguf",
            "a/gguf: 2 GGUF files fit: x-f16.gguf, x-q8_0.gguf".into(),
            "name one: a/gguf:x-f16.gguf",
        ),
        (
            "a/gguf:q9",
            "a/gguf: no file of it is called or quantized as `q9`".into(),
            "it has x-f16.gguf, x-q8_0.gguf",
        ),
        (
            "a/pickle",
            "a/pickle: holds neither safetensors with a config.json nor GGUF files".into(),
            "pickled checkpoints",
        ),
        (
            "a/gated",
            "a/gated: the model is gated; it needs a token".into(),
            "/a/gated, then set HF_TOKEN",
        ),
    ] {
        let found = bench.pull(name).unwrap_err();
        assert_eq!(found.to_string(), error);
        assert!(found.remedy().contains(remedy), "{}", found.remedy());
    }
    bench
        .server
        .fault("/api/models/a/m", Fault::Status("403 Forbidden", ""));
    assert_eq!(
        bench.pull("a/m").unwrap_err().to_string(),
        format!("a/m: {host} answers 403 for the list of files")
    );

    let known = bench_with(|settings| settings.token = Secret::new("hf_bad"));
    known.server.commit("a/gated", &[("m.gguf", b"GGUF")]);
    known.server.protect("a/gated", "hf_good", true);
    let error = known.pull("a/gated").unwrap_err().to_string();
    assert_eq!(
        error,
        "a/gated: the model is gated, and the owner of this token has no access yet"
    );
    let invalid = Fault::Status(
        "401 Unauthorized",
        "X-Error-Message: Invalid credentials in Authorization header\r\n",
    );
    known.server.fault("/api/", invalid);
    assert!(matches!(known.pull("a/gated"), Err(Error::Token { .. })));
}

#[test]
fn pauses_that_the_hub_asks_for_are_kept_up_to_a_limit() {
    let bench = bench();
    let weights = bytes(5000, 1);
    commit(&bench.server, &weights);
    bench.server.fault(
        "GET hub/api/models",
        Fault::Status("429 Too Many Requests", "Retry-After: 1\r\n"),
    );
    bench
        .server
        .fault("HEAD hub/a/m", Fault::Status("503 Service Unavailable", ""));
    bench
        .server
        .fault("GET cdn/", Fault::Status("502 Bad Gateway", ""));
    let mut waits = Vec::new();
    let mut watch = |event: Event<'_>| {
        if let Event::Waiting { seconds, .. } = event {
            waits.push(seconds);
        }
    };
    bench
        .hub
        .pull(&model("a/m"), Verify::Arriving, &mut watch)
        .unwrap();
    assert_eq!(waits, [Some(1), None, None]);
    bench.server.fault(
        "GET hub/api/models",
        Fault::Status("429 Too Many Requests", "Retry-After: 100000\r\n"),
    );
    let error = bench.pull("a/m").unwrap_err();
    assert!(
        matches!(
            error,
            Error::RateLimited {
                wait: Some(100_000),
                ..
            }
        ),
        "{error}"
    );
    assert!(error.remedy().contains("HF_TOKEN"));
}

#[test]
fn a_connection_that_stalls_is_given_up() {
    let bench = bench_with(|settings| settings.timeout = Duration::from_secs(1));
    let weights = bytes(50_000, 1);
    commit(&bench.server, &weights);
    bench
        .server
        .fault(&format!("GET cdn/{}", etag(&weights)), Fault::Stall(20_000));
    assert_eq!(bench.pull("a/m").unwrap().fetched, 59_002);
}

#[test]
fn answers_that_lead_astray_are_refused() {
    let bench = bench();
    let weights = bytes(5000, 1);
    commit(&bench.server, &weights);
    for (part, status, headers, why) in [
        (
            "HEAD hub/a/m",
            "200 OK",
            "ETag: \"../../x\"\r\n",
            "config.json has no entity tag",
        ),
        (
            "HEAD hub/a/m",
            "302 Found",
            "Location: file:///etc/passwd\r\n",
            "it redirects to nowhere",
        ),
        (
            "GET hub/api",
            "302 Found",
            "Location: //elsewhere/x\r\n",
            "it redirects to nowhere",
        ),
        ("GET hub/api", "200 OK", "", "its list of files cannot be read"),
    ] {
        bench.server.fault(part, Fault::Status(status, headers));
        let error = bench.pull("a/m").unwrap_err();
        assert!(
            matches!(&error, Error::Answer { why: found, .. } if found.contains(why)),
            "{error}"
        );
    }
    for _ in 0..11 {
        bench
            .server
            .fault("GET hub/", Fault::Status("302 Found", "Location: /again\r\n"));
    }
    assert!(
        bench
            .pull("a/m")
            .unwrap_err()
            .to_string()
            .contains("redirects more than 10 times")
    );
    // Names that lead out of the cache are not in the list.
    bench
        .server
        .commit("a/evil", &[("../../x.gguf", b"GGUF"), ("good.gguf", b"GGUF")]);
    let found = bench.pull("a/evil").unwrap();
    assert_eq!(found.path.file_name().unwrap(), "good.gguf");
    let index = br#"{"weight_map": {"x": "../../../x"}}"#;
    bench.server.commit(
        "a/index",
        &[("config.json", b"{}"), ("model.safetensors.index.json", index)],
    );
    assert!(matches!(bench.pull("a/index"), Err(Error::Content { .. })));
    assert!(!bench.cache.path().join("x").exists());
}

#[test]
fn without_a_connection_the_cache_still_works() {
    let bench = bench();
    let weights = bytes(5000, 1);
    commit(&bench.server, &weights);
    let (pulled, name) = (bench.pull("a/m").unwrap(), model("a/m"));
    let offline = Hub::new(Settings {
        offline: true,
        ..bench.hub.settings().clone()
    });
    bench.server.seen();
    let found = offline.get(&name, &mut |_| {}).unwrap();
    assert_eq!(found.path, pulled.path);
    assert_eq!(
        offline.pull(&name, Verify::Arriving, &mut |_| {}).unwrap().path,
        pulled.path
    );
    let error = offline.get(&model("a/other"), &mut |_| {}).unwrap_err();
    let place = bench.cache.path().display();
    assert_eq!(
        error.to_string(),
        format!("a/other: not in {place}, and HF_HUB_OFFLINE forbids to fetch it")
    );
    std::fs::remove_file(bench.blob(&weights)).unwrap();
    let error = offline.get(&name, &mut |_| {}).unwrap_err().to_string();
    assert!(
        error.starts_with("a/m: the file with the weights is missing in "),
        "{error}"
    );
    assert!(bench.server.seen().is_empty());

    let nowhere = bench_with(|settings| settings.endpoint = "http://127.0.0.1:9".to_owned());
    let error = nowhere.pull("a/m").unwrap_err();
    assert!(
        error.to_string().starts_with("a/m: cannot reach 127.0.0.1:9: "),
        "{error}"
    );
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_said_so() {
    let bench = bench();
    let weights = bytes(50_000, 1);
    commit(&bench.server, &weights);
    let partial = bench.blob(&weights).with_added_extension("incomplete");
    std::fs::create_dir_all(partial.parent().unwrap()).unwrap();
    // Whoever writes there is told that no space is left.
    std::os::unix::fs::symlink("/dev/full", &partial).unwrap();
    let error = bench.pull("a/m").unwrap_err();
    let place = partial.parent().unwrap().display();
    assert_eq!(
        error.to_string(),
        format!("{place}: the disk is full: model.safetensors needs 50000 bytes more")
    );
    assert!(error.remedy().contains("HF_HUB_CACHE"));
}

#[test]
fn what_can_never_fit_is_not_begun() {
    let bench = bench();
    commit(&bench.server, &bytes(5000, 1));
    let huge = "X-Linked-Etag: \"0123456789012345678901234567890123456789012345678901234567890123\"\r\n\
                X-Linked-Size: 4611686018427387904\r\nLocation: /x\r\n";
    bench
        .server
        .fault("HEAD hub/a/m/resolve", Fault::Status("302 Found", huge));
    let error = bench.pull("a/m").unwrap_err();
    assert!(
        matches!(
            error,
            Error::DiskFull {
                needed: 4_611_686_018_427_387_904,
                free: Some(_),
                ..
            }
        ),
        "{error}"
    );
    assert!(
        !bench
            .server
            .seen()
            .iter()
            .any(|seen| seen.path.starts_with("cdn/"))
    );
}

#[test]
fn two_at_once_fetch_once() {
    let bench = bench();
    let weights = bytes(2_000_000, 1);
    commit(&bench.server, &weights);
    bench.server.pace(Duration::from_millis(10));
    std::thread::scope(|scope| {
        let pulls: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| bench.pull("a/m").unwrap()))
            .collect();
        for pull in pulls {
            let found = pull.join().unwrap();
            assert_eq!(
                std::fs::read(found.path.join("model.safetensors")).unwrap(),
                weights
            );
        }
    });
    let fetched = bench
        .server
        .seen()
        .into_iter()
        .filter(|seen| seen.path.contains(&etag(&weights)));
    assert_eq!(fetched.count(), 1);
}

#[test]
fn a_newer_commit_shares_what_is_equal() {
    let bench = bench();
    let (old, new) = (bytes(40_000, 1), bytes(50_000, 2));
    let first = commit(&bench.server, &old);
    bench.pull("a/m").unwrap();
    let second = commit(&bench.server, &new);
    // Until it is pulled, the model stays what it was.
    assert_eq!(bench.hub.get(&model("a/m"), &mut |_| {}).unwrap().commit, first);
    let found = bench.pull("a/m").unwrap();
    assert_eq!((found.commit.as_str(), found.fetched), (second.as_str(), 50_000));
    assert_eq!(bench.blobs(), 4);
    let names: Vec<_> = bench
        .hub
        .models()
        .unwrap()
        .into_iter()
        .map(|model| (model.name.to_string(), model.bytes))
        .collect();
    let mut expected = vec![(format!("a/m@{first}"), 49_002), ("a/m".to_owned(), 59_002)];
    expected.sort_by_key(|(name, _)| {
        if name == "a/m" {
            second.clone()
        } else {
            first.clone()
        }
    });
    assert_eq!(names, expected);

    let removal = bench.hub.removal(&model(&format!("a/m@{first}"))).unwrap();
    assert_eq!((removal.files(), removal.bytes()), (3, 40_000));
    removal.carry_out().unwrap();
    assert_eq!(bench.blobs(), 3);
    assert!(!bench.repository().join("snapshots").join(&first).exists());
    assert_eq!(bench.hub.find(&model("a/m")).unwrap().unwrap().commit, second);
    let removal = bench.hub.removal(&model("a/m")).unwrap();
    assert_eq!(removal.bytes(), 59_002);
    removal.carry_out().unwrap();
    assert!(!bench.repository().exists());
    assert!(matches!(
        bench.hub.removal(&model("a/m")),
        Err(Error::NotCached { .. })
    ));
}

#[test]
fn gguf_files_come_and_go_one_by_one() {
    let bench = bench();
    let (ternary, float) = (bytes(9000, 1), bytes(8000, 2));
    let files: [(&str, &[u8]); 4] = [
        ("m-i2_s-00001-of-00002.gguf", &ternary),
        ("m-i2_s-00002-of-00002.gguf", b"two"),
        ("m-f16.gguf", &float),
        ("config.json", b"{}"),
    ];
    bench.server.commit("a/m", &files);
    let found = bench.pull("a/m").unwrap();
    assert_eq!(
        (found.format, found.path.file_name().unwrap().to_str()),
        (Format::Gguf, Some("m-i2_s-00001-of-00002.gguf"))
    );
    assert_eq!(found.fetched, 9003);
    bench.pull("a/m:f16").unwrap();
    let models = || -> Vec<(String, u64)> {
        bench
            .hub
            .models()
            .unwrap()
            .into_iter()
            .map(|model| (model.name.to_string(), model.bytes))
            .collect()
    };
    assert_eq!(
        models(),
        [("a/m:m-f16.gguf".to_owned(), 8000), ("a/m".to_owned(), 9003)]
    );
    for (name, _) in models() {
        assert!(bench.hub.find(&model(&name)).unwrap().is_some(), "{name}");
    }
    bench
        .hub
        .removal(&model("a/m:i2_s"))
        .unwrap()
        .carry_out()
        .unwrap();
    assert_eq!(models(), [("a/m".to_owned(), 8000)]);
    assert_eq!(bench.blobs(), 1);
}

#[test]
fn without_links_files_are_moved_and_copied() {
    let bench = bench_with(|settings| settings.symlinks = false);
    let weights = bytes(5000, 1);
    let first = commit(&bench.server, &weights);
    let found = bench.pull("a/m").unwrap();
    for file in FOLDER {
        assert!(found.path.join(file).symlink_metadata().unwrap().is_file());
    }
    assert_eq!(bench.blobs(), 0);
    assert_eq!(bench.pull("a/m").unwrap().fetched, 0);
    let models = bench.hub.models().unwrap();
    assert_eq!((models.len(), models[0].bytes), (1, 14_002));
    std::fs::write(found.path.join("config.json"), "[]").unwrap();
    assert_eq!(
        bench
            .hub
            .pull(&model("a/m"), Verify::All, &mut |_| {})
            .unwrap()
            .fetched,
        2
    );
    let removal = bench.hub.removal(&model(&format!("a/m@{first}"))).unwrap();
    assert_eq!(removal.bytes(), 14_002);
    removal.carry_out().unwrap();
    assert!(!bench.repository().exists());
}
