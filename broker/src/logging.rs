//! Log lines on standard error: text for people, JSON lines where asked for.

use tracing_subscriber::EnvFilter;

/// Starts logging. `BULKHEAD_LOG` sets the level (`info` by default), as tracing-subscriber's filters do.
pub fn start(json: bool) {
    let filter = EnvFilter::try_from_env("BULKHEAD_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    // A second start (in a test) keeps the first.
    let _ = match json {
        true => builder.json().try_init(),
        false => builder.with_ansi(false).without_time().try_init(),
    };
}
