/* The plugins, put together: each part is a module of its own that is given what it needs. */

const LIBRARIES = {
  apputils: '@jupyterlab/apputils',
  coreutils: '@jupyterlab/coreutils',
  docmanager: '@jupyterlab/docmanager',
  filebrowser: '@jupyterlab/filebrowser',
  launcher: '@jupyterlab/launcher',
  notebook: '@jupyterlab/notebook',
  polling: '@lumino/polling',
  services: '@jupyterlab/services',
  signaling: '@lumino/signaling',
  ui: '@jupyterlab/ui-components',
  application: '@jupyterlab/application',
  React: 'react'
};

/** Modules import nothing by themselves, so that each is asked for under the checksum that this one has */
const load = name => {
  const url = new URL(name, import.meta.url);
  url.search = new URL(import.meta.url).search;
  return import(url.href);
};

const dress = () => {
  const link = document.createElement('link');
  link.rel = 'stylesheet';
  link.href = new URL(`style.css${new URL(import.meta.url).search}`, import.meta.url).href;
  document.head.append(link);
};

/** Plugins for JupyterLab; `use` finds a library that it shares */
export async function makePlugins(use) {
  const names = Object.keys(LIBRARIES);
  const found = await Promise.all(names.map(name => use(LIBRARIES[name])));
  const lab = Object.fromEntries(names.map((name, index) => [name, found[index]]));
  lab.h = lab.React.createElement;
  lab.icon = new lab.ui.LabIcon({
    name: 'scalekit:bars',
    svgstr:
      '<svg xmlns="http://www.w3.org/2000/svg" width="16" viewBox="0 0 24 24">' +
      '<path class="jp-icon3" fill="#616161" d="M3 17h4v4H3zm7-6h4v10h-4zm7-8h4v18h-4z"/></svg>'
  });

  const parts = ['server', 'templates', 'parameters', 'output', 'run', 'feed', 'jobs', 'form'];
  const [server, templates, parameters, output, run, feed, jobs, form] = await Promise.all(
    parts.map(part => load(`${part}.js`))
  );
  lab.ask = server.makeAsk(lab);
  dress();

  const plugins = [
    {
      id: 'scalekit-lab:plugin',
      description: 'Jobs, templates and parameters of scalekit.',
      autoStart: true,
      requires: [lab.notebook.INotebookTracker, lab.docmanager.IDocumentManager],
      optional: [
        lab.launcher.ILauncher,
        lab.apputils.ICommandPalette,
        lab.application.ILayoutRestorer,
        lab.filebrowser.IDefaultFileBrowser
      ],
      activate: (app, tracker, docManager, launcher, palette, restorer, browser) => {
        templates.addTemplates(lab, app, { launcher, palette, browser });
        parameters.addParameters(app, { tracker, palette });
        const shown = output.addOutput(lab, app, { docManager });
        run.addRun(lab, app, { tracker, palette, output: shown });
        jobs.addJobs(lab, app, { palette, restorer, output: shown, feed: feed.makeFeed(lab, shown) });
      }
    }
  ];
  if (use.has('@jupyterlab/scheduler')) {
    const { Scheduler, IAdvancedOptions } = await use('@jupyterlab/scheduler');
    plugins.push({
      id: 'scalekit-lab:form',
      description: 'Typed parameters and options in the job form.',
      autoStart: true,
      provides: IAdvancedOptions ?? Scheduler.IAdvancedOptions,
      activate: () => form.makeOptions(lab)
    });
  }
  return plugins;
}
