import { asFailure } from './failure.ts';
import { targetName } from './handle.ts';
import type { Open } from './server.ts';

/** Whether this server would serve now; for status. */
export async function checkServer({ name, client, session }: Open, signal: AbortSignal) {
  const answer = (ready: boolean, detail: string) => ({
    name: `provider/${targetName(name).replace(':', '/')}`,
    ready,
    detail,
  });
  try {
    const query = { standbyok: 'true', perfstandbyok: 'true' };
    const { body } = await client.call({
      method: 'GET',
      path: 'sys/health',
      query,
      lane: 'settle',
      signal,
      timeout: 3_000,
    });
    const version = typeof body['version'] === 'string' ? body['version'] : 'of unknown version';
    const { ready, detail } = session.status();
    return answer(ready, `server ${version}; the broker ${detail}`);
  } catch (error) {
    const failure = asFailure(error);
    if (failure?.status === 503) return answer(false, 'the server is sealed');
    if (failure?.status === 501) return answer(false, 'the server is not initialised');
    return answer(false, failure?.message ?? 'failed');
  }
}
