//! The configuration file of a machine: `bulkhead run guest.toml`.
//!
//! Every key is a flag of `bulkhead run` by another way: the file becomes arguments, which come before those of the command
//! line, so that a flag there has the last word and there is one meaning of each. A key that is not known, or a value that
//! makes no sense, is an error with its place. Relative paths are relative to the file.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use policy::Layer;
use serde::Deserialize;

use crate::cli;
use crate::images::Disk;
use crate::limits::Limits;
use crate::nic::Nic;
use crate::runtime;

/// A file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ConfigError {
    #[error("reading the configuration {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("in the configuration {}:\n{problem}", path.display())]
    Wrong { path: PathBuf, problem: String },
}

/// The file, key by key.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct File {
    name: Option<MachineName>,
    kernel: Option<PathBuf>,
    initrd: Option<PathBuf>,
    append: Option<String>,
    memory: Option<Memory>,
    engine: Option<Engine>,
    cpu: Option<String>,
    console: Option<String>,
    no_reboot: bool,
    stats: bool,
    json: bool,
    allow_missing: Vec<LayerName>,
    quarantine: Option<String>,
    limits: Option<toml::Spanned<LimitsTable>>,
    disk: Vec<DiskTable>,
    vhost_user_blk: Vec<BackEndTable>,
    net: Vec<NetTable>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct DiskTable {
    path: PathBuf,
    format: Text,
    #[serde(default)]
    readonly: bool,
    cache: Option<Text>,
    serial: Option<Text>,
    bounce: Option<Text>,
    queues: Option<u16>,
    dma: Option<Text>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct LimitsTable {
    memory: Option<String>,
    pids: Option<u64>,
    cpu: Option<f64>,
    cpu_weight: Option<u64>,
    device_memory: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct BackEndTable {
    socket: PathBuf,
    bounce: Option<Text>,
    queues: Option<u16>,
    timeout: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct NetTable {
    mode: Text,
    mac: Option<String>,
    dns: Option<String>,
    #[serde(default)]
    allow: Vec<String>,
    #[serde(default)]
    deny: Vec<String>,
    bounce: Option<String>,
}

/// A text of the file, with its place.
type Text = toml::Spanned<String>;

#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
struct Memory(String);

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Engine {
    Auto,
    Translate,
    Interp,
}

#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
struct LayerName(Layer);

#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
struct MachineName(String);

impl TryFrom<String> for MachineName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        runtime::name(&text).map(Self)
    }
}

impl TryFrom<String> for Memory {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        cli::memory_size(&text).map(|_| Self(text))
    }
}

impl TryFrom<String> for LayerName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map(Self).map_err(|error: policy::layer::UnknownLayer| error.to_string())
    }
}

/// Reads the file at `path`: the arguments of `bulkhead run` that it stands for.
pub fn arguments(path: &Path) -> Result<Vec<OsString>, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.into(), source })?;
    let dir = path.parent().unwrap_or(Path::new(""));
    parse(&text, dir).map_err(|problem| ConfigError::Wrong { path: path.into(), problem })
}

fn parse(text: &str, dir: &Path) -> Result<Vec<OsString>, String> {
    let file: File = toml::from_str(text).map_err(|error| error.to_string())?;
    let mut arguments = Arguments(Vec::new());
    arguments.option("--name", file.name.map(|name| name.0));
    for (flag, path) in [("--kernel", &file.kernel), ("--initrd", &file.initrd)] {
        arguments.option(flag, path.as_ref().map(|path| dir.join(path)));
    }
    // A console may be a file, which is one if it has a slash in it.
    let console = file.console.map(|c| if c.contains('/') { dir.join(c) } else { c.into() });
    arguments.option("--console", console);
    let quarantine = file.quarantine.map(|q| if q == "none" { q.into() } else { dir.join(q) });
    arguments.option("--quarantine", quarantine);
    arguments.option("--append", file.append);
    arguments.option("--memory", file.memory.map(|memory| memory.0));
    arguments.option("--engine", file.engine.map(|engine| engine.name()));
    arguments.option("--cpu", file.cpu);
    for (flag, set) in [("--no-reboot", file.no_reboot), ("--stats", file.stats), ("--json", file.json)] {
        arguments.0.extend(set.then(|| flag.into()));
    }
    file.allow_missing.iter().for_each(|layer| arguments.option("--allow-missing", Some(layer.0.name())));
    if let Some(table) = &file.limits
        && let Some(option) = table.get_ref().option()
    {
        let at = line(text, table.span().start);
        Limits::parse(&option).map_err(|problem| format!("the limits at line {at}: {problem}"))?;
        arguments.option("--limits", Some(option));
    }
    for disk in &file.disk {
        let option = disk.option(dir);
        let at = line(text, disk.format.span().start);
        Disk::parse(&option).map_err(|problem| format!("the disk at line {at}: {problem}"))?;
        arguments.option("--disk", Some(option));
    }
    for back_end in &file.vhost_user_blk {
        let bounce = back_end.bounce.as_ref().map(|size| format!(",bounce={}", size.get_ref())).unwrap_or_default();
        let queues = back_end.queues.map(|number| format!(",queues={number}")).unwrap_or_default();
        let timeout = back_end.timeout.map(|seconds| format!(",timeout={seconds}")).unwrap_or_default();
        let option = format!("socket={}{bounce}{queues}{timeout}", dir.join(&back_end.socket).display());
        arguments.option("--vhost-user-blk", Some(option));
    }
    for nic in &file.net {
        let option = nic.option();
        let at = line(text, nic.mode.span().start);
        Nic::parse(&option).map_err(|problem| format!("the network card at line {at}: {problem}"))?;
        arguments.option("--net", Some(option));
    }
    Ok(arguments.0)
}

/// Arguments in the form `--flag=value`, whatever the value begins with.
struct Arguments(Vec<OsString>);

impl Arguments {
    fn option(&mut self, flag: &str, value: Option<impl Into<OsString>>) {
        let Some(value) = value else { return };
        let mut argument = OsString::from(flag);
        argument.push("=");
        argument.push(value.into());
        self.0.push(argument);
    }
}

impl Engine {
    fn name(&self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Translate => "translate",
            Self::Interp => "interp",
        }
    }
}

impl DiskTable {
    /// As --disk has it, where a comma is written twice.
    fn option(&self, dir: &Path) -> String {
        let path = dir.join(&self.path).display().to_string();
        let readonly = (if self.readonly { "on" } else { "off" }).to_owned();
        let more = [("cache", &self.cache), ("serial", &self.serial), ("bounce", &self.bounce), ("dma", &self.dma)];
        let queues = self.queues.map(|number| ("queues", number.to_string()));
        let items = [("path", path), ("format", self.format.get_ref().clone()), ("readonly", readonly)].into_iter();
        let items = items.chain(more.into_iter().filter_map(|(key, v)| Some((key, v.as_ref()?.get_ref().clone()))));
        let items = items.chain(queues);
        items.map(|(key, value)| format!("{key}={}", value.replace(',', ",,"))).collect::<Vec<_>>().join(",")
    }
}

impl NetTable {
    /// As --net has it.
    fn option(&self) -> String {
        let one = [("mac", &self.mac), ("dns", &self.dns), ("bounce", &self.bounce)];
        let one = one.into_iter().filter_map(|(key, value)| Some((key, value.as_ref()?)));
        let many = [("allow", &self.allow), ("deny", &self.deny)];
        let many = many.into_iter().flat_map(|(key, values)| values.iter().map(move |value| (key, value)));
        let items = one.chain(many).map(|(key, value)| format!(",{key}={value}"));
        self.mode.get_ref().clone() + &items.collect::<String>()
    }
}

impl LimitsTable {
    /// As --limits has it; None if nothing is limited.
    fn option(&self) -> Option<String> {
        let number = |value: &dyn ToString| value.to_string();
        let all = [
            ("memory", self.memory.clone()),
            ("pids", self.pids.as_ref().map(|n| number(n))),
            ("cpu", self.cpu.as_ref().map(|n| number(n))),
            ("cpu-weight", self.cpu_weight.as_ref().map(|n| number(n))),
            ("device-memory", self.device_memory.clone()),
        ];
        let items: Vec<String> = all.into_iter().filter_map(|(key, value)| Some(format!("{key}={}", value?))).collect();
        (!items.is_empty()).then(|| items.join(","))
    }
}

/// The line of a place in the file, counted from 1.
fn line(file: &str, place: usize) -> usize {
    file[..place].matches('\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Vec<String>, String> {
        let arguments = parse(text, Path::new("/etc/guests"))?;
        Ok(arguments.into_iter().map(|a| a.into_string().unwrap()).collect())
    }

    #[test]
    fn every_key_is_a_flag() {
        let text = r#"
            name = "guest"
            kernel = "vmlinuz"
            initrd = "/boot/initrd"
            append = "-console=ttyS0"
            memory = "256M"
            engine = "interp"
            cpu = "max,-avx2"
            console = "./log"
            no-reboot = true
            quarantine = "crashes"
            allow-missing = ["landlock"]
            [limits]
            memory = "1G"
            cpu = 2
            cpu-weight = 50
            [[disk]]
            path = "a,b"
            format = "raw"
            readonly = true
            serial = "S"
            [[disk]]
            path = "/c"
            format = "qcow2"
            cache = "unsafe"
            bounce = "1M"
            dma = "shared"
            queues = 2
            [[vhost-user-blk]]
            socket = "s"
            queues = 3
            timeout = 9
            [[net]]
            mode = "user"
            dns = "127.0.0.1:5353"
            allow = ["127.0.0.1:80/tcp", "10.0.0.0/8"]
        "#;
        let wanted = [
            "--name=guest",
            "--kernel=/etc/guests/vmlinuz",
            "--initrd=/boot/initrd",
            "--console=/etc/guests/./log",
            "--quarantine=/etc/guests/crashes",
            "--append=-console=ttyS0",
            "--memory=256M",
            "--engine=interp",
            "--cpu=max,-avx2",
            "--no-reboot",
            "--allow-missing=landlock",
            "--limits=memory=1G,cpu=2,cpu-weight=50",
            "--disk=path=/etc/guests/a,,b,format=raw,readonly=on,serial=S",
            "--disk=path=/c,format=qcow2,readonly=off,cache=unsafe,bounce=1M,dma=shared,queues=2",
            "--vhost-user-blk=socket=/etc/guests/s,queues=3,timeout=9",
            "--net=user,dns=127.0.0.1:5353,allow=127.0.0.1:80/tcp,allow=10.0.0.0/8",
        ];
        assert_eq!(parsed(text).unwrap(), wanted);
        assert_eq!(parsed("").unwrap(), [""; 0]);
    }

    #[test]
    fn what_is_wrong_is_shown_with_its_place() {
        for (text, line, says) in [
            ("kernel = \"a\"\nmemroy = \"1G\"", "line 2", "unknown field `memroy`"),
            ("memory = \"7\"", "line 1", "steps of 4K"),
            ("engine = \"fast\"", "line 1", "unknown variant `fast`"),
            ("\n\nallow-missing = [\"sec\"]", "line 3", "no layer of confinement is called `sec`"),
            ("[[disk]]\npath = \"/a\"", "line 1", "missing field `format`"),
            ("[[disk]]\npath = \"/a\"\nformat = \"vmdk\"", "line 3", "raw, qcow2"),
            ("[[disk]]\npath = \"/a\"\nformat = \"raw\"\nsize = 3", "line 4", "unknown field `size`"),
            ("\n[limits]\npids = 3", "line 2", "pids: give a number"),
            ("[limits]\nio = 3", "line 2", "unknown field `io`"),
            ("\n[[net]]\nmode = \"tap\"", "line 3", "`user` is the one mode"),
            ("[[net]]\nmode = \"user\"\nallow = [\"x\"]", "line 2", "RULE"),
            ("kernel = ", "line 1", "string"),
        ] {
            let problem = parsed(text).unwrap_err();
            assert!(problem.contains(line) && problem.contains(says), "{text}: {problem}");
        }
    }
}
