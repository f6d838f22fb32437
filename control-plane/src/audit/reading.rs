//! Reads the chains: lists for people, exact bytes for verification.

use atm_proto::audit::{checkpoint_line, event_line, finding_line};
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::{Audit, AuditError, segment};
use crate::store::audit::{self as rows, SegmentPlace, StoredCheckpoint, StoredSegment};

/// Bytes of one exported page, within one segment.
const PAGE_BYTES: usize = 512 * 1024;
/// Segments that one list call looks at; where none fits, the caller goes on from there.
const LOOKED_AT: usize = 4_096;
/// Segments of one read.
const READ: u32 = 8;
/// Checkpoints of one read; a page of segments has fewer.
const CHECKPOINTS: u32 = 256;
/// Places of one read: 4 bytes for each reference.
const READ_PLACES: u32 = 128;

/// Which events a list shows. Everything given must fit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Not before, in milliseconds since the Unix epoch.
    pub since_ms: Option<i64>,
    /// Not after.
    pub until_ms: Option<i64>,
    /// An action, `token.issued`, or all of a kind, `token.`.
    pub action: Option<String>,
    /// `success`, `refused` or `failed`.
    pub outcome: Option<String>,
    /// The actor's id.
    pub actor: Option<String>,
    /// The realm.
    pub realm: Option<String>,
    /// What an event is about: one of `client`, `subject`, `session`, `token`, `key`, `api_key`, `issuer`, and its value.
    pub references: Vec<(&'static str, String)>,
}

/// Events, the newest first.
#[derive(Debug, Serialize)]
pub struct ListPage {
    /// As they were recorded.
    pub items: Vec<Box<RawValue>>,
    /// Where older ones begin; none where there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A part of a chain as JSON Lines.
#[derive(Debug)]
pub struct ExportPage {
    /// Lines of [`atm_proto::audit`].
    pub lines: String,
    /// The event to go on with.
    pub next: u64,
    /// The event of the last checkpoint in `lines`.
    pub checkpoint: Option<u64>,
    /// Whether the chain may have more.
    pub more: bool,
}

/// A chain. Times are milliseconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ChainView {
    /// Its name.
    pub chain: String,
    /// Who writes it.
    pub instance: String,
    /// When it began.
    pub opened_at: i64,
    /// When it ended in order.
    pub closed_at: Option<i64>,
    /// The last sign of life of its process.
    pub alive_at: i64,
    /// Its last event; none where retention has removed all.
    pub last: Option<u64>,
    /// Up to here the stream has it.
    pub streamed: u64,
}

/// Where a list goes on: a segment, and how many of its newest events were shown.
struct Cursor {
    place: SegmentPlace,
    shown: usize,
}

impl Cursor {
    /// None: no cursor of ours.
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(4, '.');
        let (last_ms, first, shown) =
            (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        Some(Self { place: (last_ms, parts.next()?.to_owned(), first), shown })
    }

    fn of(segment: &StoredSegment, shown: usize) -> String {
        format!("{}.{}.{shown}.{}", segment.last_ms, segment.first, segment.chain)
    }
}

impl Filter {
    fn fits(&self, record: &str) -> bool {
        let Ok(event) = serde_json::from_str::<Value>(record) else { return false };
        let text =
            |value: &Value, wanted: &Option<String>| wanted.is_none() || value.as_str() == wanted.as_deref();
        let action = self.action.as_deref().is_none_or(|wanted| {
            event["action"]
                .as_str()
                .is_some_and(|action| action == wanted || wanted.ends_with('.') && action.starts_with(wanted))
        });
        let time = event["time_ms"].as_i64().unwrap_or_default();
        action
            && self.since_ms.is_none_or(|since| time >= since)
            && self.until_ms.is_none_or(|until| time <= until)
            && text(&event["outcome"], &self.outcome)
            && text(&event["actor"]["id"], &self.actor)
            && text(&event["realm"], &self.realm)
            && self.references.iter().all(|(name, value)| event[*name].as_str() == Some(value.as_str()))
    }
}

impl Audit {
    /// The newest events first, at most `limit` of them, behind `after`. None: `after` is no cursor.
    pub async fn list(
        &self,
        filter: &Filter,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Option<ListPage>, AuditError> {
        let mut cursor = match after.map(Cursor::parse) {
            None => None,
            Some(None) => return Ok(None),
            Some(cursor) => cursor,
        };
        let hashes: Vec<u32> =
            filter.references.iter().map(|(name, value)| segment::reference(name, value)).collect();
        let mut page = ListPage { items: Vec::new(), next: None };
        let mut looked_at = 0;
        // The segment of the cursor is looked at again: it was shown in part.
        let mut before =
            cursor.as_ref().map(|Cursor { place: (ms, chain, first), .. }| (*ms, chain.clone(), first + 1));
        loop {
            let (segments, places) = self.candidates(filter, before.as_ref(), &hashes).await?;
            let Some(last) = places.last().cloned() else { return Ok(Some(page)) };
            looked_at += places.len();
            for segment in segments {
                let shown =
                    cursor.take().filter(|cursor| cursor.place == place_of(&segment)).map_or(0, |c| c.shown);
                if let Some(next) = take(&mut page.items, filter, &segment, shown, limit) {
                    page.next = Some(next);
                    return Ok(Some(page));
                }
            }
            if looked_at >= LOOKED_AT {
                page.next = Some(format!("{}.{}.{}.{}", last.0, last.2, usize::MAX, last.1));
                return Ok(Some(page));
            }
            before = Some(last);
        }
    }

    /// The next segments that may hold what fits, and the places looked at.
    async fn candidates(
        &self,
        filter: &Filter,
        before: Option<&SegmentPlace>,
        hashes: &[u32],
    ) -> Result<(Vec<StoredSegment>, Vec<SegmentPlace>), AuditError> {
        let (store, since) = (&self.0.store, filter.since_ms.unwrap_or(i64::MIN));
        if hashes.is_empty() {
            let segments = rows::newest_segments(store, since, before, READ).await?;
            let places = segments.iter().map(place_of).collect();
            return Ok((segments, places));
        }
        let found = rows::newest_references(store, since, before, READ_PLACES).await?;
        let mut segments = Vec::new();
        for ((_, chain, first), references) in &found {
            if hashes.iter().all(|hash| segment::may_hold(references, *hash)) {
                segments.extend(rows::segments_from(store, chain, *first, 1).await?);
            }
        }
        Ok((segments, found.into_iter().map(|(place, _)| place).collect()))
    }

    /// All events about `(name, value)`, the oldest first, at most `limit`.
    pub async fn about(
        &self,
        name: &'static str,
        value: &str,
        limit: usize,
    ) -> Result<Vec<Value>, AuditError> {
        let filter = Filter { references: vec![(name, value.to_owned())], ..Filter::default() };
        let (mut events, mut after) = (Vec::new(), None::<String>);
        loop {
            // A cursor of our own is one.
            let Some(page) = self.list(&filter, after.as_deref(), limit).await? else { break };
            for item in page.items {
                events.push(serde_json::from_str(item.get())?);
            }
            match page.next {
                Some(next) if events.len() < limit => after = Some(next),
                _ => break,
            }
        }
        events.reverse();
        Ok(events)
    }

    /// A page of `chain` from the event `from` on, as lines that [`atm_proto::audit::Verifier`] takes.
    pub async fn export(&self, chain: &str, from: u64) -> Result<ExportPage, AuditError> {
        let from = from.max(1);
        // First the checkpoints: what they vouch for is there when the segments are read.
        let mut checkpoints =
            rows::checkpoints_from(&self.0.store, chain, from - 1, CHECKPOINTS).await?.into_iter().peekable();
        let segments = rows::segments_from(&self.0.store, chain, from, READ).await?;
        let mut page = ExportPage { lines: String::new(), next: from, checkpoint: None, more: false };
        let first = segments.first().map_or(u64::MAX, |segment| segment.first);
        // A bridge, one that was made since the page before, or one whose events are gone.
        while let Some(checkpoint) = checkpoints.next_if(|checkpoint| checkpoint.sequence < first) {
            page.add_checkpoint(&checkpoint);
        }
        page.more = segments.len() == READ as usize;
        for (index, segment) in segments.iter().enumerate() {
            page.add_segment(segment, from);
            while let Some(checkpoint) = checkpoints.next_if(|checkpoint| checkpoint.sequence <= segment.last)
            {
                page.add_checkpoint(&checkpoint);
            }
            if page.lines.len() >= PAGE_BYTES && index + 1 < segments.len() {
                page.more = true;
                break;
            }
        }
        if !page.more {
            // Events were cut off: the signed checkpoint shows it.
            checkpoints.for_each(|checkpoint| page.add_checkpoint(&checkpoint));
        }
        Ok(page)
    }

    /// All chains, the oldest first.
    pub async fn chains(&self) -> Result<Vec<ChainView>, AuditError> {
        let chains = rows::chains(&self.0.store).await?;
        Ok(chains
            .into_iter()
            .map(|chain| ChainView {
                chain: chain.chain,
                instance: chain.instance,
                opened_at: chain.opened_at.0,
                closed_at: chain.closed_at.map(|at| at.0),
                alive_at: chain.alive_at.0,
                last: chain.last,
                streamed: chain.streamed,
            })
            .collect())
    }
}

impl ExportPage {
    fn add_segment(&mut self, segment: &StoredSegment, from: u64) {
        if let Some(problem) = segment.problem() {
            let StoredSegment { chain, first, last, .. } = segment;
            let finding = format!("chain {chain}: the stored segment of events {first} to {last} {problem}");
            self.lines.push_str(&finding_line(&finding));
            self.lines.push('\n');
        }
        let mut link = segment.previous;
        for (record, sequence) in segment.records().zip(segment.first..) {
            if sequence >= from {
                self.lines.push_str(&event_line(link, record));
                self.lines.push('\n');
            }
            link = link.then(sequence, record.as_bytes());
        }
        self.next = segment.last.saturating_add(1).max(self.next);
    }

    fn add_checkpoint(&mut self, checkpoint: &StoredCheckpoint) {
        self.lines.push_str(&checkpoint_line(&checkpoint.signed));
        self.lines.push('\n');
        self.checkpoint = Some(checkpoint.sequence);
        if checkpoint.is_bridge {
            self.next = self.next.max(checkpoint.sequence + 1);
        }
    }
}

fn place_of(segment: &StoredSegment) -> SegmentPlace {
    (segment.last_ms, segment.chain.clone(), segment.first)
}

/// Takes what fits out of `segment`, the newest first, without the `shown` newest. Some: `limit` is reached, go on there.
fn take(
    items: &mut Vec<Box<RawValue>>,
    filter: &Filter,
    segment: &StoredSegment,
    shown: usize,
    limit: usize,
) -> Option<String> {
    let records: Vec<&str> = segment.records().collect();
    for (index, record) in records.iter().rev().enumerate().skip(shown) {
        if items.len() >= limit {
            return Some(Cursor::of(segment, index));
        }
        if filter.fits(record)
            && let Ok(item) = RawValue::from_string((*record).to_owned())
        {
            items.push(item);
        }
    }
    None
}
