/* "New from scalekit template": a card in the launcher, and a dialog with the templates to choose from. */

const COMMAND = 'scalekit:new-from-template';

export function addTemplates(lab, app, { launcher, palette, browser }) {
  app.commands.addCommand(COMMAND, {
    label: args => (args.isLauncher ? 'From scalekit template' : 'New from scalekit Template…'),
    caption: 'Start a notebook from a template that scalekit brings along',
    icon: lab.icon,
    execute: async args => {
      const folder = args.cwd ?? browser?.model.path ?? '';
      const template = args.template ?? (await chooseTemplate(lab));
      if (!template) return;
      const made = await lab.ask('templates', { template, folder });
      return app.commands.execute('docmanager:open', { path: made.path });
    }
  });
  // Cards among the notebooks show a kernel's picture, not the command's
  const kernelIconUrl = `data:image/svg+xml,${encodeURIComponent(lab.icon.svgstr)}`;
  const args = { isLauncher: true };
  launcher?.add({ command: COMMAND, category: 'Notebook', rank: 50, kernelIconUrl, args });
  palette?.addItem({ command: COMMAND, category: 'scalekit' });
}

/** Name of the template that somebody chooses, or nothing */
async function chooseTemplate(lab) {
  const { Dialog, showDialog } = lab.apputils;
  const templates = await lab.ask('templates');
  const result = await showDialog({
    title: 'New from scalekit template',
    body: makeChoice(lab, templates),
    buttons: [Dialog.cancelButton(), Dialog.okButton({ label: 'Create' })],
    focusNodeSelector: 'input'
  });
  return result.button.accept ? result.value : undefined;
}

function makeChoice({ ui, h }, templates) {
  class Choice extends ui.ReactWidget {
    constructor() {
      super();
      this.addClass('sk-templates');
      this.chosen = templates[0]?.name;
    }

    getValue() {
      return this.chosen;
    }

    render() {
      return h(
        'fieldset',
        {},
        h('legend', {}, 'A copy of it is put into the folder that is shown'),
        templates.map(({ name, summary }, index) =>
          h(
            'label',
            { key: name },
            h('input', {
              type: 'radio',
              name: 'sk-template',
              value: name,
              defaultChecked: index === 0,
              onChange: () => void (this.chosen = name)
            }),
            h('span', {}, h('strong', {}, name), h('small', {}, summary))
          )
        )
      );
    }
  }
  return new Choice();
}
