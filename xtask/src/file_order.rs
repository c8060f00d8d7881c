//! The order of the files of every crate, as ARCHITECTURE.md promises it: a file uses only files whose `mod` line stands
//! above its own. So a crate can be read in the order of its `mod` lines, and has no circles.
//!
//! A module with files of its own counts as one file for those beside it. Inside it the rule holds again; the file
//! that declares the others (`mod.rs`) may use all of them, and they may use it. Tests may use everything.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Names, `::` and single characters of `source`, without comments, literals and modules that are built for tests only.
fn tokens(source: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    let mut rest = source;
    while let Some(c) = rest.chars().next() {
        let is_name = |c: char| c.is_alphanumeric() || c == '_';
        let len = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if rest.starts_with("r#\"") {
            rest.find("\"#").map_or(rest.len(), |end| end + 2)
        } else if c == '"' {
            let mut escaped = false;
            let end = rest[1..].find(|c| {
                let ends = c == '"' && !escaped;
                escaped = c == '\\' && !escaped;
                ends
            });
            end.map_or(rest.len(), |end| end + 2)
        } else if let Some(literal) = ["'\"'", "'{'", "'}'", "'\\''"]
            .iter()
            .find(|l| rest.starts_with(**l))
        {
            literal.len()
        } else {
            let name = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
            let len = if rest.starts_with("::") {
                2
            } else {
                name.max(c.len_utf8())
            };
            if !c.is_whitespace() {
                tokens.push(&rest[..len]);
            }
            len
        };
        rest = &rest[len..];
    }
    let mut kept = Vec::new();
    let mut i = 0;
    while i < tokens.len() {
        if tokens[i..].starts_with(&["#", "[", "cfg", "(", "test", ")", "]", "mod"]) {
            let mut depth = 0;
            while let Some(&token) = tokens.get(i) {
                depth += i32::from(token == "{") - i32::from(token == "}");
                i += 1;
                if depth == 0 && matches!(token, ";" | "}") {
                    break;
                }
            }
        } else {
            kept.push(tokens[i]);
            i += 1;
        }
    }
    kept
}

/// The end of each path of the tree that begins at `tokens[at]`, written behind `stem`; returns where the tree ends.
fn paths(tokens: &[&str], mut at: usize, stem: &[String], found: &mut Vec<Vec<String>>) -> usize {
    let mut path = stem.to_vec();
    loop {
        match tokens.get(at) {
            Some(&"{") => {
                while !matches!(tokens.get(at), None | Some(&"}")) {
                    at = paths(tokens, at + 1, &path, found);
                }
                return at + 1;
            }
            // Behind the last comma.
            Some(&"}") => return at,
            Some(&"super") => drop(path.pop()),
            Some(&"self") => {}
            Some(name) if name.starts_with(|c: char| c.is_alphabetic() || c == '_') => {
                path.push((*name).to_owned())
            }
            _ => {}
        }
        at += 1;
        if tokens.get(at) != Some(&"::") {
            found.push(path);
            // `as` and the other name.
            return if tokens.get(at) == Some(&"as") { at + 2 } else { at };
        }
        at += 1;
    }
}

#[derive(Default)]
struct Source {
    /// Modules that are declared, each with its place, and names that are exported from one.
    modules: HashMap<Vec<String>, usize>,
    exports: HashMap<Vec<String>, Vec<String>>,
    /// Module, and path from the crate's root that it uses.
    uses: Vec<(Vec<String>, Vec<String>)>,
}

impl Source {
    /// Reads `file`, which is `module`, and the files that it declares, which lie in `folder`.
    fn read(&mut self, file: &Path, folder: &Path, module: &[String]) {
        let text = std::fs::read_to_string(file).unwrap();
        let tokens = tokens(&text);
        let mut inside = module.to_vec();
        // The depth of braces outside of each inline module that is open.
        let (mut depth, mut inline) = (0, Vec::new());
        for (i, &token) in tokens.iter().enumerate() {
            match token {
                "mod" if matches!(tokens.get(i + 2), Some(&(";" | "{"))) => {
                    let child = [&inside[..], &[tokens[i + 1].to_owned()]].concat();
                    self.modules.insert(child.clone(), self.modules.len());
                    if tokens[i + 2] == "{" {
                        inline.push(depth);
                        inside = child;
                    } else {
                        let own = folder.join(tokens[i + 1]);
                        let alone = own.with_extension("rs");
                        let file = if alone.is_file() {
                            alone
                        } else {
                            own.join("mod.rs")
                        };
                        self.read(&file, &own, &child);
                    }
                }
                "{" => depth += 1,
                "}" => {
                    depth -= 1;
                    if inline.last() == Some(&depth) {
                        inline.pop();
                        inside.pop();
                    }
                }
                "crate" | "super"
                    if tokens.get(i + 1) == Some(&"::") && (i == 0 || tokens[i - 1] != "::") =>
                {
                    let mut found = Vec::new();
                    let stem = if token == "crate" {
                        Vec::new()
                    } else {
                        inside[..inside.len() - 1].to_vec()
                    };
                    paths(&tokens, i + 2, &stem, &mut found);
                    self.uses
                        .extend(found.into_iter().map(|path| (inside.clone(), path)));
                }
                "use" if i > 0 && matches!(tokens[i - 1], "pub" | ")") => {
                    let mut found = Vec::new();
                    paths(&tokens, i + 1, &inside, &mut found);
                    for path in found {
                        let name = [&inside[..], &path[path.len() - 1..]].concat();
                        self.exports.insert(name, path);
                    }
                }
                _ => {}
            }
        }
    }

    /// The module that `path` is in, or that it names.
    fn owner(&self, path: &[String]) -> Vec<String> {
        let mut path = path.to_vec();
        // Twice: a name may be exported by its module and again by the root.
        for _ in 0..2 {
            let exported = (1..=path.len()).find_map(|len| Some((self.exports.get(&path[..len])?, len)));
            if let Some((origin, len)) = exported {
                path = [&origin[..], &path[len..]].concat();
            }
        }
        while !path.is_empty() && !self.modules.contains_key(&path) {
            path.pop();
        }
        path
    }

    /// Each use of a module whose `mod` line stands below that of the user.
    fn violations(&self) -> Vec<String> {
        let mut violations = Vec::new();
        for (user, path) in &self.uses {
            let used = self.owner(path);
            let common = user.iter().zip(&used).take_while(|(a, b)| a == b).count();
            if let (Some(_), Some(_)) = (user.get(common), used.get(common))
                && self.modules[&user[..=common]] < self.modules[&used[..=common]]
            {
                violations.push(format!("{} uses {}", user.join("::"), path.join("::")));
            }
        }
        violations.sort();
        violations.dedup();
        violations
    }
}

fn check(root: &Path) -> Vec<String> {
    let mut source = Source::default();
    source.read(root, root.parent().unwrap(), &[]);
    source.violations()
}

#[test]
fn files_use_only_those_above() {
    let mut roots: Vec<PathBuf> = std::fs::read_dir(crate::workspace_root().join("crates"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    roots.push(crate::workspace_root().join("xtask"));
    roots.sort();
    let mut violations = Vec::new();
    for root in roots {
        let name = root.file_name().unwrap().to_string_lossy().into_owned();
        let lib = root.join("src/lib.rs");
        let found = check(&if lib.is_file() {
            lib
        } else {
            root.join("src/main.rs")
        });
        violations.extend(found.into_iter().map(|line| format!("{name}: {line}")));
    }
    assert!(violations.is_empty(), "\n{}", violations.join("\n"));
}

#[test]
fn a_use_of_a_file_below_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    std::fs::create_dir(folder.path().join("c")).unwrap();
    write(
        "lib.rs",
        "mod a;\nmod b;\nmod c;\npub use b::{Thing, other as Else};\nfn f() { c::f() }",
    );
    write(
        "a.rs",
        "//! crate::b\nuse crate::{Thing, c::{self, x::X}};\nconst T: &str = \"crate::b\";",
    );
    write(
        "b.rs",
        "use super::a::A;\n#[cfg(test)]\nmod tests { use crate::c::x; }\nmod inner { use super::super::c::f; }",
    );
    write("c/mod.rs", "mod x;\nmod y;\npub(crate) use y::Y;\nuse crate::b;");
    write("c/x.rs", "use super::{Y, f};");
    write("c/y.rs", "use super::x::X;\nuse crate::a;");
    let expected = [
        "a uses Thing",
        "a uses c",
        "a uses c::x::X",
        "b::inner uses c::f",
        "c::x uses c::Y",
    ];
    assert_eq!(check(&folder.path().join("lib.rs")), expected);
}
