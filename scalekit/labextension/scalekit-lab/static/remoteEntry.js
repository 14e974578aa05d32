/* What JupyterLab loads: a module-federation container, written by hand.
 *
 * JupyterLab expects of an extension an object with `init`, which is given the libraries that all extensions
 * share, and `get`, which answers with the plugins. A bundler would make a thousand lines of that. The plugins
 * themselves are plain modules beside this file, asked for under a checksum that the server has put into the page:
 * so a browser never mixes files of two releases. */
(() => {
  const here = document.currentScript.src;
  let shared;

  /** A library that JupyterLab shares: the version that is loaded already, else the only one */
  const use = async name => {
    const versions = Object.values(shared[name] ?? {});
    const chosen = versions.find(version => version.loaded) ?? versions[0];
    if (!chosen) throw new Error(`scalekit: this JupyterLab has no ${name}`);
    return (await chosen.get())();
  };
  use.has = name => name in shared;

  const make = async () => {
    const { PageConfig } = await use('@jupyterlab/coreutils');
    const main = new URL(`main.js?v=${PageConfig.getOption('scalekitFiles')}`, here);
    const { makePlugins } = await import(main.href);
    return { __esModule: true, default: await makePlugins(use) };
  };

  window._JUPYTERLAB ??= {};
  window._JUPYTERLAB['scalekit-lab'] = {
    init: scope => void (shared = scope),
    get: async () => {
      const module = await make();
      return () => module;
    }
  };
})();
