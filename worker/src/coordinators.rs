//! Which coordinators there are, as far as this worker knows: at first the
//! seeds, which are configured or kept from before, and then those in the lists
//! that coordinators send.

use std::time::{Duration, Instant};

use tokio::sync::watch;

/// For how long lists must come without a coordinator before it is left: one
/// that is behind sends an old list, and the next one corrects that.
const ABSENT_MAX: Duration = Duration::from_secs(10);
/// How long nobody of the newest list may be connected before the seeds are
/// tried again, too.
const APART_MAX: Duration = Duration::from_secs(30);

/// What is known, for all who need a coordinator. It changes while the worker runs.
#[derive(Debug)]
pub struct Coordinators(watch::Sender<Known>);

impl Coordinators {
    /// Begins with the URLs that are configured and those that were kept.
    pub fn new(seeds: impl IntoIterator<Item = String>) -> Self {
        Self(watch::Sender::new(Known::new(Instant::now(), seeds)))
    }

    /// The URLs of all that are known, those first that are connected right now.
    pub fn in_order(&self) -> Vec<String> {
        self.0.borrow().in_order()
    }

    /// The URLs that the next start needs, sorted; none before the first list.
    pub fn kept(&self) -> Vec<String> {
        self.0.borrow().kept()
    }

    /// A coordinator sent this list of all; none: it says nothing new.
    pub(crate) fn listed(&self, urls: &[String]) {
        self.change(|known, now| known.listed(now, urls));
    }

    /// A beat was answered, with this word on a drain.
    pub(crate) fn heard(&self, url: &str, knows_leaving: bool, word: DrainWord) {
        let link = if knows_leaving { Link::Told } else { Link::Connected };
        self.change(|known, now| {
            known.set_link(now, url, link);
            known.say(url, word);
        });
    }

    /// How far the coordinators are with a drain that this worker asked for.
    pub(crate) fn drain_word(&self) -> DrainWord {
        self.0.borrow().drain_word()
    }

    /// Waits until who leads says that the worker is drained, in answer to a beat
    /// that was sent after this closing.
    pub(crate) async fn let_go(&self, closing: u64) {
        let mut known = self.0.subscribe();
        // It ends with `self` at the latest, which is here.
        let _let_go = known.wait_for(|known| known.lets_go(closing)).await.is_ok();
    }

    /// The connection is gone.
    pub(crate) fn broken(&self, url: &str) {
        self.change(|known, now| known.set_link(now, url, Link::Apart));
    }

    /// The coordinator does not know this worker any more. Whether to join it again.
    pub(crate) fn forgotten(&self, url: &str) -> bool {
        self.change(|known, now| known.forgotten(now, url));
        self.0.borrow().find(url).is_some()
    }

    /// Does what is due at this time.
    pub(crate) fn look(&self) {
        self.change(Known::settle);
    }

    /// Hears of changes.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Known> {
        self.0.subscribe()
    }

    /// Waits until all that are connected know that the worker leaves.
    pub(crate) async fn all_told(&self) {
        let mut known = self.0.subscribe();
        // It ends with `self` at the latest, which is here.
        let _told = known.wait_for(Known::is_told).await.is_ok();
    }

    fn change(&self, change: impl FnOnce(&mut Known, Instant)) {
        self.0.send_if_modified(|known| {
            let before = known.clone();
            change(known, Instant::now());
            *known != before
        });
    }
}

/// What coordinators say of a drain that the worker asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct DrainWord {
    /// Nothing that the catalog knows is left on the worker. Only who leads says so.
    pub(crate) is_done: bool,
    /// Why it cannot go on; empty where it goes on.
    pub(crate) lacks: String,
    /// The worker's newest closing before it sent the beat that this answers: what
    /// came to the worker before that is in what the word rests on. 0: none was.
    pub(crate) closing: u64,
}

impl DrainWord {
    /// Whether it says anything. Only who leads does.
    fn is_one(&self) -> bool {
        self.is_done || !self.lacks.is_empty()
    }
}

/// One coordinator at which the worker joins and beats.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Coordinator {
    url: String,
    standing: Standing,
    link: Link,
    /// Its last word; nothing where it is not connected.
    word: DrainWord,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// No list has come since it was taken from the seeds.
    Seed,
    /// It is in the newest list.
    Listed,
    /// Since then lists come without it.
    Absent(Instant),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    Apart,
    Connected,
    /// Connected, and it knows that the worker leaves.
    Told,
}

/// What [`Coordinators`] knows, without a clock. There is always somebody to
/// join: nobody is left while none of the newest list is connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    seeds: Vec<String>,
    wanted: Vec<Coordinator>,
    /// Since when nobody of the newest list is connected; none: somebody is.
    apart_since: Option<Instant>,
}

impl Known {
    fn new(now: Instant, seeds: impl IntoIterator<Item = String>) -> Self {
        let mut known =
            Self { seeds: seeds.into_iter().collect(), wanted: Vec::new(), apart_since: Some(now) };
        known.want_seeds();
        known
    }

    fn listed(&mut self, now: Instant, urls: &[String]) {
        if urls.is_empty() {
            return;
        }
        for coordinator in &mut self.wanted {
            coordinator.standing = match coordinator.standing {
                _ if urls.contains(&coordinator.url) => Standing::Listed,
                Standing::Absent(since) => Standing::Absent(since),
                Standing::Seed | Standing::Listed => Standing::Absent(now),
            };
        }
        for url in urls {
            self.want(url, Standing::Listed);
        }
        self.settle(now);
    }

    /// Nothing for a coordinator that was left meanwhile.
    fn set_link(&mut self, now: Instant, url: &str, link: Link) {
        if let Some(coordinator) = self.find_mut(url) {
            coordinator.link = link;
            if link == Link::Apart {
                coordinator.word = DrainWord::default();
            }
        }
        self.settle(now);
    }

    fn say(&mut self, url: &str, word: DrainWord) {
        if let Some(coordinator) = self.find_mut(url) {
            coordinator.word = word;
        }
    }

    /// One that lists come without is left where another is connected. Its URL may
    /// be a second one of that other: to join by either ends the stream by the other.
    fn forgotten(&mut self, now: Instant, url: &str) {
        self.set_link(now, url, Link::Apart);
        if self.apart_since.is_none() {
            let is_absent = |standing| matches!(standing, Standing::Absent(_));
            self.wanted.retain(|coordinator| coordinator.url != url || !is_absent(coordinator.standing));
        }
    }

    fn settle(&mut self, now: Instant) {
        let is_connected = |it: &Coordinator| it.standing == Standing::Listed && it.link != Link::Apart;
        if self.wanted.iter().any(is_connected) {
            self.apart_since = None;
            self.wanted.retain(|coordinator| match coordinator.standing {
                Standing::Absent(since) => now.saturating_duration_since(since) <= ABSENT_MAX,
                Standing::Seed | Standing::Listed => true,
            });
            return;
        }
        let since = *self.apart_since.get_or_insert(now);
        if now.saturating_duration_since(since) >= APART_MAX {
            self.want_seeds();
        }
    }

    fn want_seeds(&mut self) {
        for seed in self.seeds.clone() {
            self.want(&seed, Standing::Seed);
        }
    }

    fn want(&mut self, url: &str, standing: Standing) {
        if self.find(url).is_none() {
            let (url, word) = (url.to_owned(), DrainWord::default());
            self.wanted.push(Coordinator { url, standing, link: Link::Apart, word });
        }
    }

    fn find(&self, url: &str) -> Option<&Coordinator> {
        self.wanted.iter().find(|coordinator| coordinator.url == url)
    }

    fn find_mut(&mut self, url: &str) -> Option<&mut Coordinator> {
        self.wanted.iter_mut().find(|coordinator| coordinator.url == url)
    }

    fn in_order(&self) -> Vec<String> {
        let (apart, connected): (Vec<_>, Vec<_>) =
            self.wanted.iter().partition(|coordinator| coordinator.link == Link::Apart);
        connected.into_iter().chain(apart).map(|coordinator| coordinator.url.clone()).collect()
    }

    /// Those that are absent are in it as long as they are wanted: lists that
    /// differ for a while are not written again and again.
    fn kept(&self) -> Vec<String> {
        let listed = self.wanted.iter().filter(|coordinator| coordinator.standing != Standing::Seed);
        let mut kept: Vec<_> = listed.map(|coordinator| coordinator.url.clone()).collect();
        kept.sort_unstable();
        kept
    }

    fn is_told(&self) -> bool {
        !self.wanted.iter().any(|coordinator| coordinator.link == Link::Connected)
    }

    /// The word of whoever has one: of all that are connected only one leads.
    fn drain_word(&self) -> DrainWord {
        if self.wanted.iter().all(|coordinator| coordinator.link == Link::Apart) {
            let lacks = "no coordinator is connected".to_owned();
            return DrainWord { lacks, ..DrainWord::default() };
        }
        let mut words = self.wanted.iter().map(|coordinator| &coordinator.word);
        words.find(|word| word.is_one()).cloned().unwrap_or_default()
    }

    /// Whether one of them said that the worker is drained, after this closing.
    fn lets_go(&self, closing: u64) -> bool {
        self.wanted.iter().any(|coordinator| coordinator.word.is_done && coordinator.word.closing >= closing)
    }
}

#[cfg(test)]
mod tests;
