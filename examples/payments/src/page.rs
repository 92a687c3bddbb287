//! The page at `/`, and the stream of events that it listens to.

use std::convert::Infallible;
use std::time::Duration;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use axum::response::IntoResponse;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::routing::get;
use futures_util::{Stream, stream};
use serde::Deserialize;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::App;
use crate::feed::{Feed, News};
use crate::name::Tenant;

/// Nothing is loaded from elsewhere, and nobody else may put the page into theirs.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// How often the time that is left of the locks is told while there are some.
const TICK: Duration = Duration::from_millis(500);

pub(crate) fn routes() -> Router<App> {
    let file = |kind: &'static str, text: &'static str| {
        get(async move || {
            let headers: [(HeaderName, &str); 5] = [
                (CONTENT_TYPE, kind),
                (CONTENT_SECURITY_POLICY, POLICY),
                (X_CONTENT_TYPE_OPTIONS, "nosniff"),
                (REFERRER_POLICY, "no-referrer"),
                (CACHE_CONTROL, "no-cache"),
            ];
            (headers, text)
        })
    };
    Router::new()
        .route("/", file("text/html; charset=utf-8", include_str!("page/page.html")))
        .route("/page.css", file("text/css; charset=utf-8", include_str!("page/page.css")))
        .route("/page.js", file("text/javascript; charset=utf-8", include_str!("page/page.js")))
        .route("/events", get(events))
}

#[derive(Debug, Deserialize)]
struct Listener {
    #[serde(default)]
    tenant: Tenant,
}

/// What happens to the requests and locks of a tenant: events `request` and `locks`, and `missed`
/// when this reader was too slow. A real service knows the tenant from its authentication.
async fn events(
    State(feed): State<Feed>,
    Query(Listener { tenant }): Query<Listener>,
) -> impl IntoResponse {
    let stream = Reader::new(feed, tenant).into_stream();
    ([(CACHE_CONTROL, "no-store")], Sse::new(stream).keep_alive(KeepAlive::default()))
}

struct Reader {
    feed: Feed,
    tenant: Tenant,
    news: Receiver<News>,
    tick: Interval,
    /// Whether the locks have to be told before anything else.
    stale: bool,
}

impl Reader {
    fn new(feed: Feed, tenant: Tenant) -> Self {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { news: feed.subscribe(), feed, tenant, tick, stale: true }
    }

    fn into_stream(self) -> impl Stream<Item = Result<Event, Infallible>> {
        stream::unfold(self, async |mut reader| {
            let event = reader.next().await?;
            Some((Ok(event), reader))
        })
    }

    /// `None` ends the stream.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if self.feed.is_closed() {
                return None;
            }
            if std::mem::take(&mut self.stale) {
                return Some(event("locks", &self.feed.locks(&self.tenant)));
            }
            let news = tokio::select! {
                news = self.news.recv() => news,
                _ = self.tick.tick() => {
                    self.stale = self.feed.is_locked();
                    continue;
                }
            };
            match news {
                Ok(News::Request(request)) if request.tenant == self.tenant => {
                    return Some(event("request", &*request));
                }
                Ok(News::Request(_)) => {}
                Ok(News::Locks) => self.stale = true,
                Ok(News::Closed) | Err(RecvError::Closed) => return None,
                Err(RecvError::Lagged(missed)) => {
                    self.stale = true;
                    return Some(event("missed", &missed));
                }
            }
        }
    }
}

fn event(name: &str, data: &impl serde::Serialize) -> Event {
    // What is shown here can always be written as JSON; without, the page keeps what it knows.
    Event::default().event(name).json_data(data).unwrap_or_default()
}
