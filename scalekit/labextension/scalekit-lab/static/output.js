/* What a job has made: its executed notebook in a tab that can't change it, also while it runs, and its report. */

const DRIVE = 'scalekit-output';

export function addOutput(lab, app, { docManager }) {
  app.serviceManager.contents.addDrive(makeDrive(lab));
  const reports = new Map(); // Open tabs, by firing

  const isOutput = path => path.startsWith(`${DRIVE}:`);
  app.docRegistry.addWidgetExtension('Notebook', {
    createNew: (panel, context) => void (isOutput(context.path) && rest(context)) // opened, or restored
  });

  return {
    isOutput,

    /** Open the executed notebook of a firing; one that is open is read anew */
    async openNotebook({ id, name }) {
      const path = `${DRIVE}:${id}/${name.replace(/[^\w. -]/g, '_')}.ipynb`;
      const opened = docManager.findWidget(path, 'Notebook');
      if (opened) await docManager.contextForWidget(opened).revert();
      docManager.openOrReveal(path, 'Notebook');
    },

    /** Read the notebook anew where it is open, for example since its run has ended */
    async refresh({ id }) {
      for (const widget of app.shell.widgets('main')) {
        const context = docManager.contextForWidget(widget);
        if (context?.path.startsWith(`${DRIVE}:${id}/`)) await context.revert();
      }
    },

    async openReport({ id, name }) {
      const page = await lab.ask.text(`firings/${id}/report`);
      let tab = reports.get(id);
      if (!tab || tab.isDisposed) {
        tab = makeReport(lab, name);
        reports.set(id, tab);
        tab.disposed.connect(() => reports.delete(id));
        app.shell.add(tab, 'main');
      }
      tab.content.node.querySelector('iframe').srcdoc = page;
      app.shell.activateById(tab.id);
    }
  };
}

/** What is only read needs no kernel, and nobody is asked to save what can't be saved */
function rest({ sessionContext, model }) {
  const none = { shouldStart: false, canStart: false, autoStartDefault: false };
  sessionContext.kernelPreference = { ...sessionContext.kernelPreference, ...none };
  model.stateChanged.connect(() => {
    if (model.dirty) model.dirty = false;
  });
}

/** A page made of a notebook's output gets no origin: it can read neither JupyterLab nor its server */
function makeReport({ apputils, ui, icon }, name) {
  const content = new ui.IFrame({ sandbox: ['allow-scripts', 'allow-popups'], referrerPolicy: 'no-referrer' });
  const tab = new apputils.MainAreaWidget({ content });
  tab.id = `scalekit-report-${Math.random().toString(36).slice(2)}`;
  Object.assign(tab.title, { label: `Report of ${name}`, icon, closable: true });
  return tab;
}

/** A drive for JupyterLab's contents that knows one question: `<firing>/<name>.ipynb` */
function makeDrive({ ask, services, signaling }) {
  const refuse = async () => {
    throw new Error('this notebook is the output of a job, and stays as it is. Save a copy: File, Save As');
  };
  const drive = {
    name: DRIVE,
    serverSettings: services.ServerConnection.makeSettings(),
    isDisposed: false,
    dispose() {},
    async get(path, options) {
      const [firing, name] = path.split('/');
      const content = options?.content === false ? null : await ask(`firings/${firing}/notebook`);
      const now = new Date().toISOString();
      return {
        ...{ name, path, type: 'notebook', format: content && 'json', content, writable: false },
        ...{ created: now, last_modified: now, mimetype: '', size: undefined }
      };
    },
    getDownloadUrl: refuse,
    newUntitled: refuse,
    delete: refuse,
    rename: refuse,
    save: refuse,
    copy: refuse,
    createCheckpoint: refuse,
    listCheckpoints: async () => [],
    restoreCheckpoint: refuse,
    deleteCheckpoint: refuse
  };
  drive.fileChanged = new signaling.Signal(drive);
  return drive;
}
