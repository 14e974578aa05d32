/* Questions to the server's half, below `scalekit/api/`. */

/** `ask('templates')`, `ask('form', {path, texts})`: JSON; throws an Error with the server's sentence */
export function makeAsk({ services, coreutils }) {
  const { ServerConnection } = services;
  const request = async (path, body) => {
    const settings = ServerConnection.makeSettings();
    const url = coreutils.URLExt.join(settings.baseUrl, 'scalekit', 'api', path);
    const init = body === undefined ? {} : { method: 'POST', body: JSON.stringify(body) };
    const answer = await ServerConnection.makeRequest(url, init, settings);
    if (!answer.ok) throw new Error(await findSentence(answer));
    return answer;
  };
  const ask = async (path, body) => (await request(path, body)).json();
  ask.text = async path => (await request(path)).text();
  return ask;
}

async function findSentence(answer) {
  const text = await answer.text();
  let message;
  try {
    ({ message } = JSON.parse(text));
  } catch {
    // Not one of our answers
  }
  if (answer.status === 404 && (!message || message === 'Not Found')) {
    return 'This server does not answer for scalekit. Start it with: scalekit lab';
  }
  return message || `${answer.status} ${answer.statusText}`;
}
