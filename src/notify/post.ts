import { request as httpRequest } from 'node:http';
import { request as httpsRequest } from 'node:https';

export interface Endpoint {
  name: string;
  /** https, or http on loopback (configuration holds it). */
  url: string;
  /** Read at each delivery, so that a secret that was replaced counts at once. */
  secrets: () => readonly Uint8Array[];
  timeoutMs: number;
  ca: string | undefined;
}

/** How an endpoint took it. `gone` asks for no more (410). */
export interface Answer {
  outcome: 'delivered' | 'refused' | 'gone';
  /** Without anything that the endpoint said but its status. */
  error: string;
  retryAfterMs: number | undefined;
}

/** Posts once. No redirect is followed: node:http follows none, and a 3xx is a refusal like any other. */
export async function post(endpoint: Endpoint, headers: Record<string, string>, payload: string): Promise<Answer> {
  const url = new URL(endpoint.url);
  const secure = url.protocol === 'https:';
  const body = Buffer.from(payload, 'utf8');
  const signal = AbortSignal.timeout(endpoint.timeoutMs);
  const options = {
    method: 'POST',
    headers: {
      ...headers,
      'content-type': 'application/json',
      'content-length': body.byteLength,
      'user-agent': 'leasehold-webhook',
    },
    // No kept connection: messages are rare, and an idle one would hold the broker's stop.
    agent: false,
    signal,
    ...(secure && endpoint.ca !== undefined ? { ca: endpoint.ca } : {}),
    ...(secure ? { minVersion: 'TLSv1.2' as const } : {}),
  };
  return await new Promise((resolve) => {
    const failed = (error: Error) => {
      const what = signal.aborted ? `did not answer within ${endpoint.timeoutMs} ms` : codeOf(error);
      resolve({ outcome: 'refused', error: what, retryAfterMs: undefined });
    };
    try {
      const request = (secure ? httpsRequest : httpRequest)(url, options, (response) => {
        // The body says nothing that is needed, and could be endless.
        response.on('error', () => undefined);
        response.destroy();
        resolve(answerOf(response.statusCode ?? 0, response.headers['retry-after']));
      });
      request.on('error', failed);
      request.end(body);
    } catch (error) {
      failed(error as Error);
    }
  });
}

function answerOf(status: number, retryAfter: string | undefined): Answer {
  if (status >= 200 && status < 300) return { outcome: 'delivered', error: '', retryAfterMs: undefined };
  const seconds = /^\d{1,6}$/.test(retryAfter ?? '') ? Number(retryAfter) : undefined;
  return {
    outcome: status === 410 ? 'gone' : 'refused',
    error: `answered ${status}${status >= 300 && status < 400 ? ', and redirects are not followed' : ''}`,
    retryAfterMs: seconds === undefined ? undefined : seconds * 1_000,
  };
}

/** A message of the system may name addresses; its code says enough. */
function codeOf(error: Error): string {
  return `cannot be reached (${(error as NodeJS.ErrnoException).code ?? error.name})`;
}
