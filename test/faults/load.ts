import type { TestEstate } from '../support/broker.ts';
import { callers, refusalOf, reportsRead } from './support.ts';

/** Agents that go on asking, whatever they are told, until they are stopped. */
export function startLoad(estate: TestEstate, taskId: string) {
  const acknowledged: string[] = [];
  const refused: { requestId: string; reason: string; code: string }[] = [];
  let stopped = false;
  const { agent } = callers(estate);
  const workers = Array.from({ length: 6 }, async () => {
    while (!stopped) {
      const requestId = crypto.randomUUID();
      const call = agent.issueCredential({ requestId, taskId, ...reportsRead });
      await call.then(
        ({ credential }) => void acknowledged.push(credential!.lease!.leaseId),
        async () => {
          const { reason, code } = await refusalOf(call);
          refused.push({ requestId, reason, code });
          await new Promise((resolve) => setTimeout(resolve, 20));
        },
      );
    }
  });
  return {
    acknowledged,
    refused,
    stop: async () => {
      stopped = true;
      await Promise.all(workers);
    },
  };
}
