/* "Run as Job": from a notebook to JupyterLab's job form, by a button, a command and the side bar. */

const RUN = 'scalekit:run-as-job';

/** The job form for the notebook in front, as it is now.
 *
 * jupyter-scheduler's own command asks the file browser what is selected there, which may be another file. What it
 * does to restore a tab takes the whole state of its form, so that is how the form learns which notebook is meant. */
export function addRun(lab, app, { tracker, palette, output }) {
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
