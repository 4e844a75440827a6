import http from 'node:http';
import https from 'node:https';

/** A server, and how it is known to be the right one. */
export interface VaultEndpoint {
  address: string;
  /** PEM of the authority of its certificate. */
  ca?: string;
}

export interface VaultRequest {
  method: 'GET' | 'LIST' | 'POST' | 'PUT' | 'DELETE';
  /** Without the leading `v1/`. */
  path: string;
  token?: string;
  /** Sent as JSON, bytes as they are. */
  body?: object | Buffer;
  headers?: Record<string, string>;
  timeoutMs?: number;
}

export interface VaultResponse {
  status: number;
  headers: http.IncomingHttpHeaders;
  bytes: Buffer;
  /** The answer as JSON; an empty object when it is none. */
  json: Record<string, unknown>;
}

const defaultTimeout = 30_000;
const largestAnswer = 256 * 1024 * 1024;

/** One call to a development Vault, to set it up and to ask it for the truth. Each has a connection of its own: the server comes and goes. */
export async function vaultRequest(endpoint: VaultEndpoint, request: VaultRequest): Promise<VaultResponse> {
  const url = new URL(`/v1/${request.path}`, endpoint.address);
  const body =
    request.body === undefined || Buffer.isBuffer(request.body) ? request.body : JSON.stringify(request.body);
  const options = {
    method: request.method,
    agent: false as const,
    signal: AbortSignal.timeout(request.timeoutMs ?? defaultTimeout),
    headers: {
      'x-vault-request': 'true',
      ...(request.token === undefined ? {} : { 'x-vault-token': request.token }),
      ...(body === undefined ? {} : { 'content-length': Buffer.byteLength(body) }),
      ...request.headers,
    },
    ...(endpoint.ca === undefined ? {} : { ca: endpoint.ca }),
  };
  return await new Promise((resolve, reject) => {
    const call = (url.protocol === 'https:' ? https : http).request(url, options, (answer) => {
      const chunks: Buffer[] = [];
      let size = 0;
      answer.on('error', reject);
      answer.on('data', (chunk: Buffer) => {
        size += chunk.length;
        if (size > largestAnswer) call.destroy(new Error('the answer is too large'));
        else chunks.push(chunk);
      });
      answer.on('end', () => {
        const bytes = Buffer.concat(chunks);
        resolve({ status: answer.statusCode ?? 0, headers: answer.headers, bytes, json: parsed(bytes) });
      });
    });
    call.on('error', reject);
    call.end(body);
  });
}

/** What a failed call says, without what was sent. */
export function vaultErrors({ status, json }: VaultResponse): string {
  const errors = Array.isArray(json['errors']) ? (json['errors'] as unknown[]).map(String) : [];
  return `${status}${errors.length === 0 ? '' : `: ${errors.join('; ').slice(0, 500)}`}`;
}

function parsed(bytes: Buffer): Record<string, unknown> {
  try {
    return JSON.parse(bytes.toString('utf8')) as Record<string, unknown>;
  } catch {
    return {};
  }
}
