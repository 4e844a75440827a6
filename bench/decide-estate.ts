import { mkdir, writeFile } from 'node:fs/promises';
import path from 'node:path';

export interface PolicySize {
  agents: number;
  tools: number;
  rules: number;
}

const rulesPerFile = 100;
const head = (kind: string, name: string) =>
  `---\napiVersion: leasehold.dev/v1\nkind: ${kind}\nmetadata:\n  name: ${name}\n  owner: team@acme.test\n`;

/** A folder of policy documents as an estate of this size would have them: every rule has a condition, one in ten denies. */
export async function writePolicy(directory: string, { agents, tools, rules }: PolicySize): Promise<void> {
  await mkdir(directory, { recursive: true });
  const write = (name: string, parts: readonly string[]) => writeFile(path.join(directory, name), parts.join(''));
  const times = (count: number, of: (n: number) => string) => Array.from({ length: count }, (_, n) => of(n));
  await write(
    'agents.yaml',
    times(
      agents,
      (n) => `${head('Agent', `agent-${n}`)}  reviewBy: 2030-06-30
  labels: { team: team-${n % 50} }
spec:
  workloads: [spiffe://acme.test/agent/${n}]
`,
    ),
  );
  await write(
    'tools.yaml',
    times(
      tools,
      (n) => `${head('Tool', `tool-${n}`)}  labels: { sensitivity: internal }
spec:
  resource: https://tool-${n}.acme.test
  tiers:
    read:
      provider: jwt
      revocation: immediate
      ttl: { min: 1m, default: 5m, max: 30m }
      actions: [list, get]
    write:
      provider: jwt
      revocation: immediate
      ttl: { min: 1m, default: 5m, max: 10m }
      arguments: { repository: { type: string }, amount: { type: integer } }
`,
    ),
  );
  const rule = (n: number) => {
    const denies = n % 10 === 9;
    return `    - name: rule-${n}
      agents: [agent-${n % agents}]
      tools: [tool-${(n * 7) % tools}]
      tiers: [read, write]
      effect: ${denies ? 'deny' : 'allow'}
      when: task.context.ticket.startsWith("CHG-") && time.hour >= ${n % 12}
${denies ? '      reason: Not this one.\n' : '      obligations:\n        ttl: 5m\n        renewal: { max: 20, maxAge: 8h }\n'}`;
  };
  for (let first = 0; first < rules; first += rulesPerFile) {
    const members = times(Math.min(rulesPerFile, rules - first), (n) => rule(first + n));
    await write(`policy-${first}.yaml`, [head('Policy', `policy-${first}`), 'spec:\n  rules:\n', ...members]);
  }
}
