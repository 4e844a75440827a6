import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Verifier } from '../verifier/verifier.ts';

export interface ReportsTool {
  url: string;
  stop(): Promise<void>;
}

/** A tool as its owner might write it: an HTTP API that checks each token with the verifier, and knows nothing else of the broker. */
export async function startReportsTool(verifier: Verifier): Promise<ReportsTool> {
  const server = createServer((request, response) => {
    const answer = (status: number, body: object) => {
      response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body));
    };
    const token = /^Bearer (.+)$/.exec(request.headers.authorization ?? '')?.[1] ?? '';
    verifier.verify(token).then(
      (verified) => answer(200, { report: 'quarterly', for: verified.workload, task: verified.taskId }),
      (error: Error) => answer(401, { error: error.message }),
    );
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/quarterly`,
    stop: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}
