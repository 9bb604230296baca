//! Log lines on standard error: text for people, JSON lines where asked for.

use tracing_subscriber::EnvFilter;

/// The level that was asked for: `BULKHEAD_LOG`, else `info`. Confined processes send no more than this.
pub fn filter_text() -> String {
    std::env::var("BULKHEAD_LOG").ok().filter(|text| text.parse::<EnvFilter>().is_ok()).unwrap_or("info".into())
}

/// Starts logging. `BULKHEAD_LOG` sets the level (`info` by default), as tracing-subscriber's filters do.
pub fn start(json: bool) {
    let filter = EnvFilter::new(filter_text());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    // A second start (in a test) keeps the first.
    let _ = match json {
        true => builder.json().try_init(),
        false => builder.with_ansi(false).without_time().try_init(),
    };
}
