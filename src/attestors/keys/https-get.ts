import { readFile } from 'node:fs/promises';
import http from 'node:http';
import https from 'node:https';

export interface GetOptions {
  /** PEM with the only roots to trust, read again each time; the system's roots when not given. */
  caFile?: string | undefined;
  maxBytes: number;
  signal: AbortSignal;
}

/** One GET: no redirect is followed, the answer must be 200, and it must end within the size and the signal. */
export async function httpsGet(url: URL, { caFile, maxBytes, signal }: GetOptions): Promise<Buffer> {
  try {
    const ca = caFile === undefined ? {} : { ca: await readFile(caFile) };
    const response = await send(url, { ...ca, signal });
    if (response.statusCode !== 200) {
      response.destroy();
      const redirect = response.headers.location === undefined ? '' : ' (redirects are not followed)';
      throw new Error(`it answered ${response.statusCode}${redirect}`);
    }
    const chunks: Buffer[] = [];
    let size = 0;
    for await (const chunk of response as AsyncIterable<Buffer>) {
      size += chunk.length;
      // Leaving the loop destroys the response, and with it the connection.
      if (size > maxBytes) throw new Error(`its answer is larger than ${maxBytes} bytes`);
      chunks.push(chunk);
    }
    return Buffer.concat(chunks);
  } catch (error) {
    const reason = signal.aborted ? (signal.reason as Error) : (error as Error);
    const why = reason.name === 'TimeoutError' ? 'it did not answer in time' : reason.message;
    throw new Error(`${url.origin}${url.pathname}: ${why}`, { cause: error });
  }
}

function send(url: URL, options: { ca?: Buffer; signal: AbortSignal }): Promise<http.IncomingMessage> {
  return new Promise((resolve, reject) => {
    const settings = { ...options, agent: false, headers: { accept: 'application/json' } } as const;
    // Said aloud, because an environment variable can turn the default off.
    const request =
      url.protocol === 'https:'
        ? https.get(url, { ...settings, rejectUnauthorized: true }, resolve)
        : http.get(url, settings, resolve);
    request.on('error', reject);
  });
}

/** Plain HTTP is for a provider on this very machine only. */
export function isLoopback(url: URL): boolean {
  return url.hostname === 'localhost' || url.hostname === '[::1]' || /^127\.\d+\.\d+\.\d+$/.test(url.hostname);
}
