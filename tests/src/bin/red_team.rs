//! A process that tries to get out of its confinement, and the one that starts it. Run by `tests/tests/red_team.rs`.

use std::process::ExitCode;

use policy::Role;
use tests::red_team::{Strength, Target, lead, member};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments.iter().map(String::as_str).collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[&str]) -> Result<(), Box<dyn std::error::Error>> {
    let strength = |word| Strength::from_word(word).ok_or("full or without-filter");
    match arguments {
        ["lead", role, how, calls @ ..] => {
            let calls = calls.iter().map(|c| c.parse()).collect::<Result<Vec<usize>, _>>()?;
            Ok(lead(role.parse::<Role>()?, strength(how)?, &calls)?)
        }
        ["member", role, how, attempt, pid, port] => {
            let target = Target { lead: pid.parse()?, port: port.parse()? };
            member(role.parse::<Role>()?, strength(how)?, attempt, target)
        }
        _ => Err("red_team lead ROLE full|without-filter [SYSCALL...]".into()),
    }
}
