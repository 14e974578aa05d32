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
  try {
    return JSON.parse(text).message || `${answer.status} ${answer.statusText}`;
  } catch {
    return `${answer.status} ${answer.statusText}`;
  }
}
