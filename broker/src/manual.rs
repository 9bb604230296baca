//! Completions for shells, and manual pages: both made of the command line's own definition, so that they say what it does.

use std::io::{self, Write};
use std::path::Path;

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use ipc::outcome;

use crate::cli::Cli;
use crate::runtime::RuntimeError;

/// Prints what `shell` is to be told.
pub fn completions(shell: Shell) -> Result<u8, RuntimeError> {
    print(&completions_for(shell))
}

fn completions_for(shell: Shell) -> Vec<u8> {
    let (mut command, mut text) = (Cli::command(), Vec::new());
    let name = command.get_name().to_owned();
    clap_complete::generate(shell, &mut command, name, &mut text);
    text
}

/// Writes a page for each command into `dir`, or prints the first of them.
pub fn pages(dir: Option<&Path>) -> Result<u8, RuntimeError> {
    let Some(dir) = dir else { return print(&page(&built()).1) };
    for (file, text) in all(&built()) {
        let path = dir.join(file);
        std::fs::write(&path, text).map_err(|source| RuntimeError::Write { path, source })?;
    }
    Ok(outcome::POWER_OFF)
}

/// A reader that has seen enough is no error.
fn print(text: &[u8]) -> Result<u8, RuntimeError> {
    match io::stdout().lock().write_all(text) {
        Err(source) if source.kind() != io::ErrorKind::BrokenPipe => {
            Err(RuntimeError::Write { path: "standard output".into(), source })
        }
        _ => Ok(outcome::POWER_OFF),
    }
}

/// The command line, complete: every command knows its whole name.
fn built() -> Command {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    command
}

/// The page of a command and those of all below it: file names and texts.
fn all(command: &Command) -> Vec<(String, Vec<u8>)> {
    let below = command.get_subcommands().filter(|below| !below.is_hide_set());
    [page(command)].into_iter().chain(below.flat_map(all)).collect()
}

fn page(command: &Command) -> (String, Vec<u8>) {
    // As in bulkhead-policy-show.1.
    let name = command.get_display_name().unwrap_or(command.get_name()).replace(' ', "-");
    let mut text = Vec::new();
    let man = Man::new(command.clone()).title(name.to_uppercase()).section("1");
    // Writing into memory does not fail.
    let _ = man.render(&mut text);
    (format!("{name}.1"), text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(command: &Command) -> Vec<String> {
        let below = command.get_subcommands();
        below.flat_map(|below| [below.get_name().to_owned()].into_iter().chain(names(below))).collect()
    }

    #[test]
    fn every_command_is_completed_and_has_a_page() {
        let names = names(&built());
        assert!(names.len() >= 11 && names.iter().any(|name| name == "logs"), "{names:?}");
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let text = String::from_utf8(completions_for(shell)).unwrap();
            for name in names.iter().map(String::as_str).chain(["follow", "allow-missing"]) {
                assert!(text.contains(name), "{shell}: {name}");
            }
        }
        let pages = all(&built());
        assert_eq!(pages.len(), names.len() + 1);
        for name in &names {
            let named = |(file, text): &(String, Vec<u8>)| {
                file.ends_with(&format!("-{name}.1")) && String::from_utf8_lossy(text).contains(".SH OPTIONS")
            };
            assert!(pages.iter().any(named), "{name}: {:?}", pages.iter().map(|page| &page.0).collect::<Vec<_>>());
        }
        let first = String::from_utf8_lossy(&pages[0].1).into_owned();
        assert!(pages[0].0 == "bulkhead.1" && first.contains("Exit codes"), "{first}");
    }
}
