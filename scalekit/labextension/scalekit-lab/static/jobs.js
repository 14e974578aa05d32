/* The side bar: what runs, how far it is, how long it still takes; and what became of the rest.
 *
 * It asks the server once a second while something runs, every two seconds otherwise, and not at all while nobody
 * can see it. The server answers with what has changed. Times of the server are set against its own clock. */

const RUN = 'scalekit:run-as-job';
const SHOW = 'scalekit:show-jobs';
const BUSY = 1000; // Between two questions while something goes on [ms]
const CALM = 2000;
const SLOWEST = 10_000; // While the server doesn't answer

const NO_DAEMON = 'Jobs wait: no daemon is at work in this store. Start one in a terminal: scalekit serve';

const STATES = {
  waiting: '◷',
  running: '▶',
  stopping: '◼',
  succeeded: '✓',
  failed: '✗',
  cancelled: '⊘',
  skipped: '↷',
  missed: '∅'
};
const OPEN = new Set(['waiting', 'running', 'stopping']);

export function addJobs(lab, app, { tracker, palette, restorer, output }) {
  addRun(lab, app, tracker, palette, output);
  const feed = makeFeed(lab, output);
  const panel = makePanel(lab, app, feed, output);
  app.shell.add(panel, 'left', { rank: 900 });
  restorer?.add(panel, panel.id);
  app.commands.addCommand(SHOW, {
    label: 'Show Jobs of scalekit',
    icon: lab.icon,
    execute: () => app.shell.activateById(panel.id)
  });
  palette?.addItem({ command: SHOW, category: 'scalekit' });
}

/** "Run as Job": the job form for the notebook in front, as it is now.
 *
 * jupyter-scheduler's own command asks the file browser what is selected there, which may be another file. What it
 * does to restore a tab takes the whole state of its form, so that is how the form learns which notebook is meant. */
function addRun(lab, app, tracker, palette, output) {
  const open = 'scheduling:restore-layout';
  const CREATE = 1; // The form, among the views of jupyter-scheduler's tab
  app.commands.addCommand(RUN, {
    label: 'Run as Job',
    caption: 'Run this notebook as a job, now or on a schedule',
    icon: lab.icon,
    isEnabled: () => {
      const { path } = tracker.currentWidget?.context ?? {};
      return path !== undefined && !output.isOutput(path) && app.commands.hasCommand(open);
    },
    execute: async () => {
      const { context } = tracker.currentWidget;
      if (context.model.dirty) await context.save();
      return app.commands.execute(open, { jobsView: CREATE, createJobModel: makeModel(lab, context.localPath) });
    }
  });
  palette?.addItem({ command: RUN, category: 'scalekit' });
  app.docRegistry.addWidgetExtension('Notebook', {
    createNew: panel => {
      const button = new lab.apputils.CommandToolbarButton({ commands: app.commands, id: RUN });
      if (!panel.toolbar.insertAfter('cellType', 'scalekit-run', button)) {
        panel.toolbar.insertItem(10, 'scalekit-run', button);
      }
      return button;
    }
  });
}

/** The state of jupyter-scheduler's form before anything is typed */
function makeModel({ coreutils: { PathExt } }, path) {
  const stem = PathExt.basename(path, '.ipynb').replace(/[^\w. -]/g, '').replace(/^[ -]+/, '');
  return {
    key: Math.random(),
    jobName: stem.slice(0, 63) || 'job',
    inputFile: path,
    outputPath: PathExt.dirname(path),
    environment: '', // The first one
    createType: 'Job',
    schedule: '0 0 * * MON-FRI',
    scheduleInterval: 'weekday',
    scheduleClock: '00:00',
    scheduleMinute: '0',
    scheduleMonthDay: '1',
    scheduleWeekDay: '1',
    timezone: Intl.DateTimeFormat().resolvedOptions().timeZone
  };
}

/** What is known of jobs, kept up to date while somebody looks */
function makeFeed({ ask, polling, signaling }, output) {
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

function makePanel(lab, app, feed, output) {
  class JobsPanel extends lab.ui.ReactWidget {
    constructor() {
      super();
      this.id = 'scalekit-jobs';
      this.addClass('sk-jobs');
      Object.assign(this.title, { icon: lab.icon, caption: 'Jobs of scalekit' });
      this.node.setAttribute('role', 'region');
      this.node.setAttribute('aria-label', 'Jobs of scalekit');
      feed.changed.connect(() => this.update());
    }

    onAfterAttach(message) {
      super.onAfterAttach(message);
      if (this.isVisible) this.begin(); // it was in front when JupyterLab was left
    }

    onBeforeDetach(message) {
      this.end();
      super.onBeforeDetach(message);
    }

    onAfterShow() {
      this.begin();
    }

    onAfterHide() {
      this.end();
    }

    begin() {
      this.end();
      void feed.poll.start().then(() => feed.poll.refresh());
      this.clock = setInterval(() => this.update(), 1000); // what is left, and since when, goes by
    }

    end() {
      void feed.poll.stop();
      clearInterval(this.clock);
    }

    render() {
      return draw(lab, app, feed, output);
    }
  }
  return new JobsPanel();
}

function draw(lab, app, feed, output) {
  const { h } = lab;
  const firings = [...feed.firings.values()].sort((a, b) => (a.id < b.id ? 1 : -1));
  const now = Date.now() + feed.skew;
  const act = (command, label) =>
    app.commands.hasCommand(command) &&
    h(
      'button',
      {
        className: 'sk-button',
        disabled: !app.commands.isEnabled(command),
        onClick: () => app.commands.execute(command)
      },
      label
    );
  return h(
    'div',
    { className: 'sk-panel' },
    h(
      'header',
      {},
      h('h2', {}, 'Jobs'),
      h('span', { className: `sk-feed sk-${feed.state}`, role: 'status' }, feed.state)
    ),
    h('nav', {}, act(RUN, 'Run notebook as job'), act('scheduling:list-jobs-from-launcher', 'All jobs')),
    feed.isIdle && h('p', { className: 'sk-trouble', role: 'alert' }, NO_DAEMON),
    feed.trouble && h('p', { className: 'sk-trouble', role: 'alert' }, feed.trouble),
    feed.answered > 0 && firings.length === 0 && h('p', { className: 'sk-soft' }, 'No job has run yet.'),
    h(
      'ul',
      { role: 'list' },
      firings.map(firing => h(Job, { key: firing.id, lab, feed, output, firing, now }))
    )
  );
}

/** One firing: a line or two, and more where it is unfolded */
function Job({ lab, feed, output, firing, now }) {
  const { h } = lab;
  const detail = feed.details.get(firing.id);
  const isOpen = OPEN.has(firing.state);
  const turn = () => (detail ? feed.fold(firing.id) : feed.unfold(firing.id));
  const act = (label, does) =>
    h('button', { className: 'sk-button', 'aria-label': `${label}: ${firing.name}`, onClick: guard(lab, does) }, label);
  const stop = async () => {
    await lab.ask(`firings/${firing.id}/stop`, {});
    await feed.look();
  };
  const hasRun = Boolean(firing.run) && (Boolean(firing.progress) || !isOpen); // else it is only reserved
  return h(
    'li',
    { className: `sk-job sk-${firing.state}` },
    h(
      'button',
      { className: 'sk-head', 'aria-expanded': Boolean(detail), onClick: turn },
      h('span', { className: 'sk-icon', 'aria-hidden': true }, STATES[firing.state] ?? '?'),
      h('strong', {}, firing.name),
      h('span', { className: 'sk-state' }, firing.state)
    ),
    isOpen && firing.state !== 'waiting' && drawBar(h, firing),
    h('p', { className: 'sk-soft' }, describe(firing, now)),
    firing.why && h('p', { className: 'sk-why' }, firing.why),
    detail && drawDetail(lab, firing, detail),
    (isOpen || detail) &&
      h(
        'div',
        { className: 'sk-acts' },
        isOpen && firing.state !== 'stopping' && act('Stop', stop),
        hasRun && act('Open output', () => output.openNotebook(firing)),
        hasRun && act('Open report', () => output.openReport(firing))
      )
  );
}

/** An error of a button is told where it can be read */
const guard = (lab, does) => () =>
  Promise.resolve(does()).catch(error => lab.apputils.Notification.error(error.message, { autoClose: 10_000 }));

function drawBar(h, { name, progress }) {
  const most = progress?.n_cells ?? progress?.n_trials;
  const done = progress?.n_done ?? progress?.n_trials_done ?? 0;
  const known = most ? { value: done, max: most } : {};
  return h('progress', { ...known, 'aria-label': `Progress of ${name}` });
}

function drawDetail({ React, h }, { progress }, { parameters = {}, metrics = {}, log = '' }) {
  const table = (title, values) =>
    Object.keys(values).length > 0 &&
    h(
      'table',
      {},
      h('caption', {}, title),
      h(
        'tbody',
        {},
        Object.entries(values).map(([name, value]) =>
          h('tr', { key: name }, h('th', { scope: 'row' }, name), h('td', {}, value))
        )
      )
    );
  return h(
    'div',
    { className: 'sk-detail' },
    progress?.line && h('code', {}, progress.line),
    table('Parameters', parameters),
    table('Metrics', metrics),
    log && h(Log, { React, log })
  );
}

/** The last lines; who hasn't scrolled up sees new ones */
function Log({ React, log }) {
  const node = React.useRef(null);
  const isAtEnd = React.useRef(true);
  React.useLayoutEffect(() => {
    if (isAtEnd.current) node.current.scrollTop = node.current.scrollHeight;
  }, [log]);
  const onScroll = ({ target }) => {
    isAtEnd.current = target.scrollHeight - target.scrollTop - target.clientHeight < 20;
  };
  return React.createElement(
    'pre',
    { ref: node, role: 'log', 'aria-label': 'Last lines', tabIndex: 0, onScroll },
    log
  );
}

/** `cell 3 of 7 · 12 s · about 40 s left (by 2 earlier runs)` */
function describe(firing, now) {
  const { progress, state } = firing;
  const said = [];
  if (OPEN.has(state) && progress) said.push(...describeProgress(progress, now));
  if (firing.started && OPEN.has(state)) said.push(`${span(now - Date.parse(firing.started))} so far`);
  if (firing.started && firing.ended) {
    said.push(`${span(Date.parse(firing.ended) - Date.parse(firing.started))}`);
  }
  if (firing.next_try && state === 'waiting') said.push(`next at ${clock(firing.next_try)}`);
  if (firing.attempt > 1) said.push(`attempt ${firing.attempt} of ${firing.most_attempts}`);
  if (firing.profile) said.push(firing.profile);
  said.push(clock(firing.ended ?? firing.due));
  return said.join(' · ');
}

function describeProgress(progress, now) {
  if ('n_trials_done' in progress) {
    return [`${progress.n_trials_done} of ${progress.n_trials ?? '?'} trials, ${progress.n_trials_running} at it`];
  }
  const left = progress.until ? Date.parse(progress.until) - now : null;
  const rest = left === null ? 'time left: ?' : left > 0 ? `about ${span(left)} left` : 'any moment';
  const source = progress.until_by ? ` (${progress.until_by})` : '';
  return [`cell ${progress.cell} of ${progress.n_cells ?? '?'}`, rest + source];
}

/** `45 s`, `3 min`, `1 h 20 min` */
function span(milliseconds) {
  const seconds = Math.max(0, Math.round(milliseconds / 1000));
  if (seconds < 100) return `${seconds} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 100 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** A time of today as `14:05`, else with its day */
function clock(text) {
  const time = new Date(text);
  const isToday = time.toDateString() === new Date().toDateString();
  const day = isToday ? {} : { month: 'short', day: 'numeric' };
  return time.toLocaleString(undefined, { ...day, hour: '2-digit', minute: '2-digit' });
}
