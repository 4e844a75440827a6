import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { CallReporter, Verifier } from '../verifier/index.ts';

export interface ReportsTool {
  url: string;
  stop(): Promise<void>;
}

export interface ReportsToolOptions {
  verifier: Verifier;
  reporter: CallReporter;
  /** A call that the broker would not record: an operator of the tool should know. */
  onUnreported: (error: unknown) => void;
}

/** A tool as its owner might write it: an HTTP API that checks each token with the verifier, and reports what it did. */
export async function startReportsTool({ verifier, reporter, onUnreported }: ReportsToolOptions): Promise<ReportsTool> {
  const server = createServer((request, response) => {
    const answer = (status: number, body: object) => {
      response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body));
    };
    const token = /^Bearer (.+)$/.exec(request.headers.authorization ?? '')?.[1] ?? '';
    const about = request.headers['leasehold-call'];
    verifier.verify(token).then(
      (verified) => {
        answer(200, { report: 'quarterly', for: verified.workload, task: verified.taskId });
        // The agent does not wait for this: the reporter sends it together with others, and again when it has to.
        reporter
          .report(verified, {
            action: 'reports.read',
            outcome: 'succeeded',
            arguments: { report: 'quarterly' },
            effect: { objects: ['report:quarterly'], rows: 1 },
            ...(typeof about === 'string' ? { aboutCallId: about } : {}),
            ...(request.socket.remoteAddress === undefined ? {} : { peer: { address: request.socket.remoteAddress } }),
          })
          .catch(onUnreported);
      },
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
