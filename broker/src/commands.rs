//! Subcommands that ask a running machine, or only look at this host: everything but `run`.

use std::io::{BufRead, BufReader, Write};

use ipc::outcome;
use policy::Role;
use serde_json::{Value, json};

use crate::attach;
use crate::cli::{Ask, Show};
use crate::control_api::{self, Request, ask};
use crate::doctor;
use crate::inspect;
use crate::logging::Entry;
use crate::manual;
use crate::runtime::{self, RuntimeError};

/// Does it, and returns the exit code.
pub fn run(command: &Ask) -> Result<u8, RuntimeError> {
    match command {
        Ask::Ps { json } => ps(*json),
        Ask::Inspect { vm, json } => {
            let machine = request(vm, &Request::Inspect)?;
            if *json {
                println!("{machine}")
            } else {
                print!("{}", inspect::text(&machine))
            }
            Ok(refusal(&machine))
        }
        Ask::Restart { vm, device } => plain(vm, &Request::Restart { device: device.clone() }),
        Ask::Resize { vm, device } => plain(vm, &Request::Resize { device: device.clone() }),
        Ask::Logs { vm, follow, json } => logs(vm, *follow, *json),
        Ask::Console { vm } => attach::run(vm),
        Ask::Completions { shell } => manual::completions(*shell),
        Ask::Man { dir } => manual::pages(dir.as_deref()),
        Ask::Stop { vm } => plain(vm, &Request::Stop),
        Ask::Doctor { json } => Ok(doctor::run(*json)),
        Ask::Policy { show: Show::Show { role } } => {
            print!("{}", role.text());
            Ok(outcome::POWER_OFF)
        }
    }
}

fn request(vm: &str, request: &Request) -> Result<Value, RuntimeError> {
    let failed = |source| RuntimeError::Talk { name: vm.into(), source };
    ask(runtime::connect(vm)?, request).map_err(failed)
}

/// Prints a machine's events as they come. A reader that has seen enough, `head` for one, is no error.
fn logs(vm: &str, follow: bool, json: bool) -> Result<u8, RuntimeError> {
    let failed = |source| RuntimeError::Talk { name: vm.into(), source };
    let stream = runtime::connect(vm)?;
    control_api::request(&stream, &Request::Logs { follow }).map_err(failed)?;
    if follow {
        stream.set_read_timeout(None).map_err(failed)?;
    }
    let mut out = std::io::stdout().lock();
    for line in BufReader::new(stream).lines() {
        let line = line.map_err(failed)?;
        let event: Value = serde_json::from_str(&line).map_err(|error| failed(error.into()))?;
        if event["error"].is_string() {
            return Ok(refusal(&event));
        }
        let shown = if json { format!("{event}\n") } else { Entry::shown(&event) };
        if out.write_all(shown.as_bytes()).and_then(|()| out.flush()).is_err() {
            break;
        }
    }
    Ok(outcome::POWER_OFF)
}

/// A request whose answer is that it was taken, or why not.
fn plain(vm: &str, what: &Request) -> Result<u8, RuntimeError> {
    let answer = request(vm, what)?;
    Ok(refusal(&answer))
}

/// Shows why a request was refused, if it was; the exit code.
pub fn refusal(answer: &Value) -> u8 {
    match answer["error"].as_str() {
        Some(problem) => {
            eprintln!("error: {problem}");
            outcome::USAGE
        }
        None => outcome::POWER_OFF,
    }
}

/// One line a machine. A socket that nobody answers at is what a killed broker left: it is not shown.
fn ps(json: bool) -> Result<u8, RuntimeError> {
    let names = runtime::names()?;
    let machines: Vec<Value> = names.iter().filter_map(|name| request(name, &Request::Inspect).ok()).collect();
    if json {
        println!("{}", json!(machines));
        return Ok(outcome::POWER_OFF);
    }
    for machine in &machines {
        let list = |key: &str| machine[key].as_array().cloned().unwrap_or_default();
        let (name, broker) = (machine["name"].as_str().unwrap_or("?"), &machine["broker"]);
        let processes: Vec<String> = list("processes")
            .iter()
            .map(|process| format!("{} {}", process["name"].as_str().unwrap_or("?"), process["pid"]))
            .collect();
        println!("{name}  broker {broker}  {}", processes.join("  "));
    }
    Ok(outcome::POWER_OFF)
}

/// The role that a name on the command line means.
pub fn role(name: &str) -> Result<Role, String> {
    name.parse().map_err(|error: policy::role::UnknownRole| error.to_string())
}
