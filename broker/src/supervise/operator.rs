//! What an operator asks of the machine: by the control socket, or by keys on the terminal that it was started on.

use ipc::control::ToVmm;
use serde_json::{Value, json};

use super::Supervisor;
use super::ending::Ending;
use crate::console::Console;
use crate::control_api::{Answer, Request};
use crate::escape::Action;
use crate::inspect;

/// What `bulkhead console` is told of a machine whose console is elsewhere.
const NOT_LENT: &str = "its console is where `bulkhead run` has it: a machine started with --console socket has one to \
                        attach to";

impl Supervisor {
    pub(super) fn serve_api(&mut self) {
        if let Some(mut api) = self.api.take() {
            api.serve(|request| self.obey(&request));
            self.api = Some(api);
        }
    }

    fn obey(&mut self, request: &Request) -> Answer {
        match request {
            Request::Inspect => Answer::Done(self.inspect()),
            // A vmm that waits for its disks does not go on without one.
            Request::Restart { .. } if !self.started => {
                Answer::error("the machine is being started: ask again when it runs")
            }
            Request::Restart { device } => match self.devices.restart(device, &mut self.vmm.link) {
                true => Answer::done(),
                false => Answer::error(format!("the machine has no device called {device}")),
            },
            Request::Resize { device } => match self.devices.resize(device) {
                Ok(()) => Answer::done(),
                Err(problem) => Answer::error(problem),
            },
            Request::Stop => {
                self.asked_to_end();
                Answer::done()
            }
            Request::PowerButton => {
                self.request(&ToVmm::PowerButton);
                Answer::done()
            }
            Request::Logs { follow } => Answer::Events { follow: *follow },
            Request::Console => self.lend(),
        }
    }

    fn inspect(&self) -> Value {
        let (devices, mut processes) = self.devices.report();
        processes.insert(0, inspect::process("vmm", "vmm", self.vmm.process.pid(), true));
        if let Some(group) = &self.group {
            for process in &mut processes {
                process["cgroup"] = group.usage(process["name"].as_str());
            }
        }
        let (name, broker) = (&self.name, std::process::id());
        let group = self.group.as_ref().map(|group| group.usage(None));
        let state = match self.ending {
            Ending::No if self.started => "running",
            Ending::No => "starting",
            _ => "ending",
        };
        json!({ "name": name, "state": state, "broker": broker, "cgroup": group, "processes": processes, "devices": devices })
    }

    fn lend(&mut self) -> Answer {
        let Console::Kept(kept) = &mut self.console else { return Answer::error(NOT_LENT) };
        match self.vmm.console.try_clone() {
            Ok(console) if kept.open() => Answer::Console { console: console.into(), backlog: kept.take() },
            Ok(_) => Answer::error("the machine is at its end"),
            Err(error) => Answer::error(format!("giving its console away: {error}")),
        }
    }

    pub(super) fn read_input(&mut self) {
        for action in self.console.relay().map(|relay| relay.read_input()).unwrap_or_default() {
            match action {
                Action::Quit => self.stop(),
                Action::PowerButton => self.request(&ToVmm::PowerButton),
                Action::Help => {}
            }
        }
    }

    pub(super) fn request(&mut self, request: &ToVmm) {
        if let Err(error) = self.vmm.link.say(request, &[]) {
            tracing::debug!("telling the vmm {request:?}: {error}");
        }
    }
}
