import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import type { RequestListener } from 'node:http';
import https from 'node:https';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { createTestCa } from './bundle-certificates.ts';

export interface TestEndpoint {
  url: string;
  /** PEM file with the root that vouches for the endpoint. */
  caFile: string;
  /** Requests that arrived. */
  requests(): number;
  /** What is answered from now on: a text with 200, or by a handler. */
  answer(reply: string | RequestListener): void;
  close(): Promise<void>;
}

/** A real HTTPS server on loopback, vouched for by an authority of its own. */
export async function startHttpsEndpoint(
  first: string | RequestListener,
  names: string[] = ['localhost', '127.0.0.1'],
): Promise<TestEndpoint> {
  const ca = createTestCa();
  const dir = await mkdtemp(path.join(tmpdir(), 'leasehold-endpoint-'));
  const caFile = path.join(dir, 'ca.pem');
  await writeFile(caFile, ca.certificate);
  let reply = first;
  let requests = 0;
  const server = https.createServer(ca.issue(names), (request, response) => {
    requests += 1;
    if (typeof reply === 'function') reply(request, response);
    else response.writeHead(200, { 'content-type': 'application/json' }).end(reply);
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return {
    url: `https://127.0.0.1:${(server.address() as AddressInfo).port}`,
    caFile,
    requests: () => requests,
    answer(next) {
      reply = next;
    },
    async close() {
      const closed = once(server, 'close');
      server.close();
      server.closeAllConnections();
      await closed;
      await rm(dir, { recursive: true, force: true });
    },
  };
}
