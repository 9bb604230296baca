//! Which mirrors this machine uses, rewritten for bookworm on i386.
//!
//! The machine may run another release than bookworm: an entry for its own release (`trixie`, `trixie-updates`,
//! `trixie-security`) becomes the same entry for bookworm. Other archives are left out, and no mirror is built in.

use std::fs;
use std::path::{Path, PathBuf};

const SUITE: &str = "bookworm";

/// One archive: where it is and whose signature it carries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Source {
    uris: Vec<String>,
    suites: Vec<String>,
    components: Vec<String>,
    /// A keyring's path, or the text of a key; may span lines.
    signed_by: Option<String>,
}

/// The sources file for apt, in deb822 form; an error text if the machine names no Debian mirror.
pub fn bookworm(root: &Path) -> Result<String, String> {
    let release = fs::read_to_string(root.join("etc/os-release")).unwrap_or_default();
    let field =
        |name: &str| release.lines().find_map(|line| line.strip_prefix(name)).map(|text| text.trim_matches('"'));
    if field("ID=") != Some("debian") {
        return Err(format!("this machine is not Debian (os-release says {:?})", field("ID=").unwrap_or("nothing")));
    }
    let own = field("VERSION_CODENAME=").unwrap_or(SUITE).to_owned();
    let sources: Vec<_> = machine(root).iter().filter_map(|source| pinned(source, &own)).collect();
    if !sources.iter().any(|source| source.suites.iter().any(|suite| suite == SUITE)) {
        return Err(format!("/etc/apt names no Debian mirror with suite {own} and component main"));
    }
    Ok(sources.iter().map(text).collect())
}

/// A source with its suites renamed to bookworm's; none if it is not this machine's Debian archive.
fn pinned(source: &Source, own: &str) -> Option<Source> {
    if !source.components.iter().any(|component| component == "main") {
        return None;
    }
    let rename = |suite: &String| match suite.strip_prefix(own).or_else(|| suite.strip_prefix("stable"))? {
        suffix @ ("" | "-updates" | "-security") => Some(format!("{SUITE}{suffix}")),
        _ => None,
    };
    let suites: Vec<_> = source.suites.iter().filter_map(rename).collect();
    (!suites.is_empty()).then(|| Source { suites, ..source.clone() })
}

fn text(source: &Source) -> String {
    let signed = source.signed_by.as_ref().map(|key| format!("Signed-By: {key}\n")).unwrap_or_default();
    format!(
        "Types: deb\nURIs: {}\nSuites: {}\nComponents: main\nArchitectures: i386\n{signed}\n",
        source.uris.join(" "),
        source.suites.join(" "),
    )
}

/// Every `deb` source of the machine.
fn machine(root: &Path) -> Vec<Source> {
    let mut files: Vec<PathBuf> = vec![root.join("etc/apt/sources.list")];
    let parts = fs::read_dir(root.join("etc/apt/sources.list.d")).into_iter().flatten().flatten();
    files.extend(parts.map(|part| part.path()));
    files.sort();
    let mut sources = Vec::new();
    for file in files {
        let Ok(content) = fs::read_to_string(&file) else { continue };
        match file.extension().and_then(|ext| ext.to_str()) {
            Some("sources") => sources.extend(content.split("\n\n").filter_map(stanza)),
            Some("list") => sources.extend(content.lines().filter_map(line)),
            _ => {}
        }
    }
    sources
}

/// One deb822 stanza.
fn stanza(content: &str) -> Option<Source> {
    let mut source = Source::default();
    let mut types = String::new();
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in content.lines().filter(|line| !line.starts_with('#')) {
        match (line.starts_with([' ', '\t']), fields.last_mut(), line.split_once(':')) {
            (true, Some((_, value)), _) => value.push_str(&format!("\n{line}")),
            (false, _, Some((name, value))) => fields.push((name.to_ascii_lowercase(), value.trim().to_owned())),
            _ => {}
        }
    }
    let words = |value: &str| value.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    for (name, value) in fields {
        match name.as_str() {
            "types" => types = value,
            "uris" => source.uris = words(&value),
            "suites" => source.suites = words(&value),
            "components" => source.components = words(&value),
            "signed-by" => source.signed_by = Some(value),
            "enabled" if value == "no" => return None,
            _ => {}
        }
    }
    types.split_whitespace().any(|kind| kind == "deb").then_some(source)
}

/// One line of the older format: `deb [options] uri suite component...`.
fn line(content: &str) -> Option<Source> {
    let rest = content.trim().strip_prefix("deb ")?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(inner) => inner.split_once(']')?,
        None => ("", rest),
    };
    let mut words = rest.split_whitespace().map(str::to_owned);
    Some(Source {
        uris: vec![words.next()?],
        suites: vec![words.next()?],
        components: words.collect(),
        signed_by: options.split_whitespace().find_map(|option| option.strip_prefix("signed-by=")).map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_release_is_pinned_to_bookworm() {
        let source = stanza(
            "Types: deb\nURIs: http://mirror/debian\nSuites: trixie trixie-updates trixie-backports\nComponents: main\nSigned-By:\n -----BEGIN\n .\n abc\n",
        );
        let source = pinned(&source.unwrap(), "trixie").unwrap();
        assert_eq!(source.suites, ["bookworm", "bookworm-updates"]);
        assert_eq!(source.signed_by.as_deref(), Some("\n -----BEGIN\n .\n abc"));
    }

    #[test]
    fn old_format_and_foreign_archives() {
        let source = line("deb [arch=amd64 signed-by=/k.gpg] http://mirror/debian bookworm main contrib").unwrap();
        assert_eq!(source.signed_by.as_deref(), Some("/k.gpg"));
        assert!(pinned(&source, "bookworm").is_some());
        assert!(line("# deb http://mirror/debian bookworm main").is_none());
        assert!(pinned(&line("deb http://other nodistro main").unwrap(), "bookworm").is_none());
    }
}
