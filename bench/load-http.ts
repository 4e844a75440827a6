import http from 'node:http';
import type { HttpWork } from './protocol.ts';

/** As a client of the API itself would call it: one connection for each slot, kept open. */
export function connectHttp(work: HttpWork, callTimeout: number) {
  const agents = work.headers.map(() => new http.Agent({ keepAlive: true, maxSockets: 1 }));
  return {
    close: () => agents.forEach((agent) => agent.destroy()),
    operation: async (slot: number): Promise<boolean> => {
      const answer = await get(work.url, agents[slot]!, work.headers[slot]!, callTimeout);
      if (answer[work.wanted] === undefined) throw new Error(`${work.url}: the answer holds no ${work.wanted}`);
      return true;
    },
  };
}

async function get(
  url: string,
  agent: http.Agent,
  headers: Record<string, string>,
  timeout: number,
): Promise<Record<string, unknown>> {
  return await new Promise((resolve, reject) => {
    const call = http.get(url, { agent, headers, timeout }, (answer) => {
      const chunks: Buffer[] = [];
      answer.on('data', (chunk: Buffer) => chunks.push(chunk));
      answer.on('error', reject);
      answer.on('end', () => {
        const text = Buffer.concat(chunks).toString('utf8');
        if (answer.statusCode !== 200) reject(new Error(`${url}: ${answer.statusCode} ${text.slice(0, 300)}`));
        else resolve(JSON.parse(text) as Record<string, unknown>);
      });
    });
    call.on('timeout', () => call.destroy(new Error(`${url}: no answer within ${timeout} ms`)));
    call.on('error', reject);
  });
}
