/* The side bar: what runs, how far it is, how long it still takes; and what became of the rest. */

const RUN = 'scalekit:run-as-job';
const SHOW = 'scalekit:show-jobs';
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

export function addJobs(lab, app, { palette, restorer, output, feed }) {
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
