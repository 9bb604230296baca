//! The apt client with private directories: it verifies signatures and checksums, resolves versions, and downloads.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Error, sources};

/// A private apt state below the cache, with fresh package lists.
pub struct Apt {
    config: PathBuf,
}

impl Apt {
    /// Writes the configuration, reads the machine's mirrors, and fetches the package lists.
    pub fn open(cache: &Path) -> Result<Self, Error> {
        let state = cache.join("apt");
        let not_debian = |why: String| Error::NotDebian(why, cache.to_path_buf());
        for tool in ["apt-get", "dpkg-deb"] {
            Command::new(tool)
                .arg("--version")
                .output()
                .map_err(|error| not_debian(format!("cannot run {tool}: {error}")))?;
        }
        let sources = sources::bookworm(Path::new("/")).map_err(not_debian)?;
        let apt = Self { config: state.join("apt.conf") };
        apt.write(&state, &sources).map_err(|error| Error::Io { path: state, error })?;
        apt.update()?;
        Ok(apt)
    }

    fn write(&self, state: &Path, sources: &str) -> io::Result<()> {
        for dir in ["lists/partial", "archives/partial", "sources.d", "none.d"] {
            fs::create_dir_all(state.join(dir))?;
        }
        fs::write(state.join("status"), "")?;
        fs::write(state.join("sources.d/bookworm.sources"), sources)?;
        fs::write(&self.config, config(state))
    }

    /// Fetches the lists. A mirror that is half-way through a sync of one suite does not stop the others: what is
    /// needed is looked for afterwards, and its absence is the error that counts.
    fn update(&self) -> Result<(), Error> {
        match run(self.command("apt-get").arg("update")) {
            Err(Error::Apt { output, .. }) if self.knows("busybox-static") => {
                eprintln!("note: apt could not refresh every list and goes on with the others:\n{output}");
                Ok(())
            }
            other => other.map(drop),
        }
    }

    fn knows(&self, package: &str) -> bool {
        run(self.command("apt-cache").args(["show", package])).is_ok()
    }

    /// The package that a kernel metapackage depends on.
    pub fn kernel_package(&self, meta: &str) -> Result<String, Error> {
        let record = run(self.command("apt-cache").args(["show", "--no-all-versions", meta]))?;
        let depends = record.lines().find_map(|line| line.strip_prefix("Depends: ")).unwrap_or_default();
        let image = depends.split(", ").find(|name| name.starts_with("linux-image-")).map(first_word);
        image.map(str::to_owned).ok_or_else(|| Error::NoKernel { package: meta.into() })
    }

    /// Downloads one package into `into`, checked, and returns the file.
    pub fn download(&self, package: &str, into: &Path) -> Result<PathBuf, Error> {
        run(self.command("apt-get").args(["download", package]).current_dir(into))?;
        packages(into)?.pop().ok_or_else(|| Error::Missing { package: package.into(), path: "*.deb".into() })
    }

    /// Downloads a package and all that it depends on into `into`, which is empty, and returns the files.
    pub fn download_closure(&self, package: &str, into: &Path) -> Result<Vec<PathBuf>, Error> {
        // apt fetches only what it has not got: a directory of its own makes that all of it.
        let partial = into.join("partial");
        fs::create_dir(&partial).map_err(|error| Error::Io { path: partial, error })?;
        let archives = format!("Dir::Cache::archives={}", into.display());
        run(self.command("apt-get").args(["-o", &archives, "install", "--yes", "--download-only", package]))?;
        packages(into)
    }

    fn command(&self, tool: &str) -> Command {
        let mut command = Command::new(tool);
        command.arg("-qq").arg("-c").arg(&self.config).env("LC_ALL", "C.UTF-8");
        command
    }
}

/// The packages in a directory.
fn packages(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let files = fs::read_dir(dir).map_err(|error| Error::Io { path: dir.into(), error })?;
    Ok(files
        .flatten()
        .map(|file| file.path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "deb"))
        .collect())
}

fn first_word(text: &str) -> &str {
    text.split([' ', '(']).next().unwrap_or(text)
}

/// The machine's own configuration (proxies and the like) stays in force; everything that it names by path is replaced.
/// Its hooks are cleared: they concern the machine's packages, not these.
fn config(state: &Path) -> String {
    let root = nix::unistd::Uid::effective().is_root();
    // As root apt drops to a user that cannot enter a private cache.
    let user = if root { "APT::Sandbox::User \"root\";\n" } else { "" };
    let state = state.display();
    format!(
        "#clear APT::Update::Pre-Invoke;\n#clear APT::Update::Post-Invoke;\n#clear APT::Update::Post-Invoke-Success;\n\
         #clear APT::Architectures;\nAPT::Architecture \"i386\";\nAPT::Architectures {{ \"i386\"; }};\n\
         APT::Install-Recommends \"false\";\nAPT::Install-Suggests \"false\";\nAPT::Get::AllowUnauthenticated \"false\";\n\
         Acquire::Languages \"none\";\nAcquire::Retries \"3\";\nAcquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n\
         Dir::State \"{state}\";\nDir::State::lists \"{state}/lists\";\nDir::State::status \"{state}/status\";\n\
         Dir::Cache \"{state}\";\nDir::Cache::archives \"{state}/archives\";\nDir::Etc::sourcelist \"/dev/null\";\n\
         Dir::Etc::sourceparts \"{state}/sources.d\";\nDir::Etc::preferences \"/dev/null\";\n\
         Dir::Etc::preferencesparts \"{state}/none.d\";\nDebug::NoLocking \"true\";\n{user}"
    )
}

/// Runs a command; its standard output, or an error that shows the command and what it said.
pub fn run(command: &mut Command) -> Result<String, Error> {
    let words: Vec<_> =
        std::iter::once(command.get_program()).chain(command.get_args()).map(|word| word.to_string_lossy()).collect();
    let words = words.join(" ");
    match command.output() {
        Ok(output) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Ok(output) => Err(Error::Apt { command: words, output: String::from_utf8_lossy(&output.stderr).into_owned() }),
        Err(error) => Err(Error::Apt { command: words, output: error.to_string() }),
    }
}
