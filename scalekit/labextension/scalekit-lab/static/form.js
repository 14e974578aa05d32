/* JupyterLab's job form, with inputs that know what a notebook takes, and the options that a job may have.
 *
 * The form of jupyter-scheduler has a place for one component of others, behind "Additional options". What stands in
 * its inputs goes into the form's own model: parameters that were changed, and `runtimeEnvironmentParameters`. The
 * server judges each change; a mistake is shown at its input, and the form can't be sent while there is one. */

const OPTIONS = [
  { name: 'gpus', label: 'GPUs per job', kind: 'number', help: 'Workers of a profile for GPUs; empty: as the profile says' },
  { name: 'workers', label: 'Workers', kind: 'number', help: 'Of the profile’s cluster; empty: as the profile says' },
  { name: 'timeout', label: 'Time-out', placeholder: '90s, 10m, 4h', help: 'Longest time of an attempt' },
  { name: 'retries', label: 'Retries', kind: 'number', help: 'Attempts after one that failed; each goes on where the last one ended' },
  { name: 'email', label: 'E-mail', placeholder: 'me@example.org', help: 'Who is told of failures and recoveries' },
  { name: 'window', label: 'Window', placeholder: '22:00-06:00', help: 'Hours in which it may start' },
  { name: 'max_cost', label: 'Highest cost', kind: 'number', step: 'any', help: 'Of all attempts together' }
];
const PAUSE = 250; // After the last key, before the server is asked [ms]

/** The component that JupyterLab's job form shows */
export function makeOptions(lab) {
  const { h } = lab;
  return props => {
    const { model } = props;
    const isNew = model.jobId === undefined && model.definitionId === undefined;
    return isNew ? h(Form, { lab, ...props }) : h(Summary, { lab, options: model.runtimeEnvironmentParameters });
  };
}

function Form({ lab, model, handleModelChange, handleErrorsChange }) {
  const { React, h } = lab;
  const root = React.useRef(null);
  const texts = Object.fromEntries((model.parameters ?? []).map(({ name, value }) => [name, String(value)]));
  const options = model.runtimeEnvironmentParameters ?? {};
  const { form, trouble } = useSignature(lab, model.inputFile);
  const mistakes = useMistakes(lab, model.inputFile, texts, options, form !== null, handleErrorsChange);

  React.useEffect(() => {
    if (form?.fields.length) unfold(root.current);
  }, [form]);

  const setText = (field, text) => {
    const others = (model.parameters ?? []).filter(({ name }) => name !== field.name);
    const mine = text === field.start ? [] : [{ name: field.name, value: text }];
    handleModelChange({ ...model, parameters: [...others, ...mine] });
  };
  const setOption = (name, text) => {
    const { [name]: _, ...others } = options;
    handleModelChange({ ...model, runtimeEnvironmentParameters: text === '' ? others : { ...others, [name]: text } });
  };

  return h(
    'div',
    { ref: root, className: 'sk-form' },
    trouble && h('p', { role: 'alert', className: 'sk-mistake' }, trouble),
    form !== null && drawParameters(h, form, texts, mistakes.parameters, setText),
    h(
      'fieldset',
      {},
      h('legend', {}, 'This job'),
      OPTIONS.map(option =>
        h(Input, {
          key: option.name,
          h,
          field: { start: '', hint: '', kind: 'text', ...option },
          label: option.label,
          id: `sk-option-${option.name}`,
          text: String(options[option.name] ?? ''),
          mistake: mistakes.options[option.name],
          onText: text => setOption(option.name, text)
        })
      )
    )
  );
}

function drawParameters(h, form, texts, mistakes, setText) {
  const about = form.has_cell
    ? 'Parameters of the notebook'
    : 'This notebook has no cell marked as parameters: right-click one, Mark as Parameters';
  return h(
    'fieldset',
    {},
    h('legend', {}, about),
    form.fields.map(field =>
      h(Input, {
        key: field.name,
        h,
        field,
        label: field.name,
        id: `sk-parameter-${field.name}`,
        text: texts[field.name] ?? field.start,
        mistake: mistakes[field.name],
        onText: text => setText(field, text)
      })
    )
  );
}

/** One labelled input, of the kind that its field asks for */
function Input({ h, field, label, id, text, mistake, onText }) {
  const note = `${id}-note`;
  const common = {
    id,
    name: id,
    required: field.required,
    'aria-invalid': Boolean(mistake),
    'aria-describedby': note,
    onChange: event => onText(event.target.value)
  };
  const plain = { ...common, value: text, placeholder: field.placeholder || undefined };
  const inputs = {
    number: () => h('input', { ...plain, type: 'number', step: field.step ?? '1' }),
    lines: () => h('textarea', { ...plain, rows: 3 }),
    secret: () => h('input', { ...plain, placeholder: field.placeholder || 'env:NAME', autoComplete: 'off' }),
    text: () => h('input', { ...plain, type: 'text' }),
    check: () =>
      h('input', {
        ...common,
        type: 'checkbox',
        checked: text === 'True',
        onChange: event => onText(event.target.checked ? 'True' : 'False')
      }),
    choice: () =>
      h(
        'select',
        { ...common, value: text },
        field.choices.map(choice => h('option', { key: choice, value: choice }, choice))
      )
  };
  const said = [field.help, field.kind === 'choice' || field.kind === 'check' ? '' : field.hint];
  return h(
    'div',
    { className: `sk-field sk-${field.kind}` },
    h('label', { htmlFor: id }, label, field.required && h('span', { 'aria-hidden': true }, ' *')),
    inputs[field.kind](),
    mistake
      ? h('p', { id: note, role: 'alert', className: 'sk-mistake' }, mistake)
      : h('p', { id: note, className: 'sk-soft' }, [...new Set(said)].filter(Boolean).join(' · '))
  );
}

/** What a notebook takes; `form` is null until it is known */
function useSignature({ React, ask }, path) {
  const [found, setFound] = React.useState({ form: null, trouble: '' });
  React.useEffect(() => {
    let isMeant = true;
    const set = value => isMeant && setFound(value);
    if (path) {
      ask(`form?path=${encodeURIComponent(path)}`)
        .then(form => set({ form, trouble: '' }))
        .catch(error => set({ form: null, trouble: error.message }));
    }
    return () => void (isMeant = false);
  }, [path]);
  return found;
}

/** The server's mind about what was typed; the form is told of it too, and can't be sent with a mistake */
function useMistakes({ React, ask }, path, texts, options, isKnown, handleErrorsChange) {
  const [mistakes, setMistakes] = React.useState({ parameters: {}, options: {} });
  const typed = JSON.stringify({ path, texts, options });
  React.useEffect(() => {
    if (!isKnown) return;
    let isMeant = true;
    const judge = async () => {
      const told = await ask('form', JSON.parse(typed));
      if (!isMeant) return;
      setMistakes({ parameters: told.mistakes, options: told.wrong_options });
      handleErrorsChange({ ...told.mistakes, ...told.wrong_options });
    };
    const timer = setTimeout(() => judge().catch(error => console.warn(`scalekit: ${error.message}`)), PAUSE);
    return () => {
      isMeant = false;
      clearTimeout(timer);
    };
  }, [typed, isKnown]);
  return mistakes;
}

/** Nobody looks for a notebook's parameters behind a fold; and bare lines for the same values would only confuse */
function unfold(node) {
  node.closest('form')?.classList.add('sk-typed');
  const summary = node.closest('.MuiAccordion-root')?.querySelector('[aria-expanded="false"]');
  summary?.click();
}

function Summary({ lab, options }) {
  const { h } = lab;
  const said = Object.entries(options ?? {});
  if (said.length === 0) return h('p', { className: 'sk-soft' }, 'None.');
  const label = name => OPTIONS.find(option => option.name === name)?.label ?? name;
  return h(
    'dl',
    { className: 'sk-summary' },
    said.map(([name, value]) => h('div', { key: name }, h('dt', {}, label(name)), h('dd', {}, String(value))))
  );
}
