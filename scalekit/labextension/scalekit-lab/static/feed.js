/* What is known of jobs. The server is asked once a second while something runs, every two seconds otherwise, and not
 * at all while nobody can see the answer, which has only what changed. Its times are set against its own clock. */

const BUSY = 1000; // Between two questions while something goes on [ms]
const CALM = 2000;
const SLOWEST = 10_000; // While the server doesn't answer

const OPEN = new Set(['waiting', 'running', 'stopping']);

/** What is known of jobs, kept up to date while somebody looks */
export function makeFeed({ ask, polling, signaling }, output) {
  const feed = {
    firings: new Map(),
    details: new Map(), // Of those that are unfolded
    state: 'connecting',
    trouble: '',
    isIdle: false, // Something waits, and nobody is there who would start it
    skew: 0, // Of the server's clock [ms]
    answered: 0
  };
  feed.changed = new signaling.Signal(feed);
  let cursor = '';

  const take = news => {
    if (news.all) feed.firings.clear();
    for (const firing of news.firings) {
      const before = feed.firings.get(firing.id);
      feed.firings.set(firing.id, firing);
      if (before && OPEN.has(before.state) && !OPEN.has(firing.state)) output.refresh(firing).catch(() => {});
    }
    news.gone.forEach(id => feed.firings.delete(id));
    feed.skew = Date.parse(news.now) - Date.now();
    feed.isIdle = !news.daemon && [...feed.firings.values()].some(firing => firing.state === 'waiting');
    cursor = news.cursor;
  };

  const detail = async id => {
    const firing = feed.firings.get(id);
    const known = feed.details.get(id);
    if (!firing || (known?.last && !OPEN.has(firing.state))) return;
    const told = await ask(`firings/${id}`);
    if (feed.details.has(id)) feed.details.set(id, { ...told, last: !OPEN.has(firing.state) });
  };

  const look = async () => {
    try {
      take(await ask(`live?cursor=${encodeURIComponent(cursor)}`));
      await Promise.all([...feed.details.keys()].map(detail));
      const isBusy = [...feed.firings.values()].some(firing => OPEN.has(firing.state));
      feed.poll.frequency = { interval: isBusy ? BUSY : CALM, max: SLOWEST, backoff: true };
      Object.assign(feed, { state: 'live', trouble: '', answered: Date.now() });
    } catch (error) {
      Object.assign(feed, { state: feed.answered ? 'retrying' : 'unavailable', trouble: error.message });
      throw error; // the poll waits longer and longer
    } finally {
      feed.changed.emit();
    }
  };

  feed.poll = new polling.Poll({
    name: 'scalekit-lab:jobs',
    auto: false,
    factory: look,
    frequency: { interval: CALM, max: SLOWEST, backoff: true },
    standby: 'when-hidden'
  });
  feed.look = () => feed.poll.refresh();
  feed.unfold = async id => {
    feed.details.set(id, {});
    await detail(id).catch(() => {});
    feed.changed.emit();
  };
  feed.fold = id => {
    feed.details.delete(id);
    feed.changed.emit();
  };
  return feed;
}
