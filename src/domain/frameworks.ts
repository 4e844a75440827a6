/**
 * Which items of published frameworks the parts of the report are evidence for. Identifiers and titles are the
 * publishers'; docs/governance.md names the editions. MAESTRO has no identifiers: a layer and the name of a threat.
 */
export type ReportPart = 'agents' | 'tools' | 'grants' | 'denials' | 'approvals' | 'renewals' | 'outcomes';

export interface Control {
  part: ReportPart;
  framework: keyof typeof frameworks;
  item: string;
  title: string;
  /** What the part shows about the item. */
  evidence: string;
}

export const frameworks = {
  'OWASP Agentic 2026': 'https://genai.owasp.org/resource/owasp-top-10-for-agentic-applications-for-2026/',
  'CSA MAESTRO 2025': 'https://cloudsecurityalliance.org/blog/2025/02/06/agentic-ai-threat-modeling-framework-maestro',
  'NIST AI RMF 1.0': 'https://doi.org/10.6028/NIST.AI.100-1',
  'NIST CSF 2.0': 'https://doi.org/10.6028/NIST.CSWP.29',
} as const;

const owasp = 'OWASP Agentic 2026';
const maestro = 'CSA MAESTRO 2025';
const aiRmf = 'NIST AI RMF 1.0';
const csf = 'NIST CSF 2.0';

type Row = readonly [ReportPart, Control['framework'], string, string, string];

const rows: readonly Row[] = [
  [
    'agents',
    aiRmf,
    'GOVERN 1.6',
    'Mechanisms are in place to inventory AI systems',
    'every agent that can get a credential is listed',
  ],
  [
    'agents',
    aiRmf,
    'GOVERN 1.5',
    'Ongoing monitoring and periodic review are planned',
    'review dates, and which are due or overdue',
  ],
  [
    'agents',
    aiRmf,
    'GOVERN 2.1',
    'Roles and responsibilities are documented and clear',
    'an accountable owner for each agent',
  ],
  [
    'agents',
    csf,
    'GV.RR-02',
    'Roles, responsibilities, and authorities are established and enforced',
    'an accountable owner for each agent',
  ],
  [
    'agents',
    csf,
    'PR.AA-01',
    'Identities and credentials for authorized users, services, and hardware are managed',
    'credentials issued and renewed by agent',
  ],
  ['agents', maestro, 'L7', 'Agent Impersonation', 'what each attested agent was given'],
  [
    'tools',
    csf,
    'ID.AM-02',
    'Inventories of software, services, and systems are maintained',
    'every tool and tier that agents can reach',
  ],
  ['tools', owasp, 'ASI02', 'Tool Misuse and Exploitation', 'who may use each tier, and how much it was used'],
  ['tools', maestro, 'L7', 'Agent Tool Misuse', 'who may use each tier, and how much it was used'],
  ['grants', owasp, 'ASI03', 'Identity and Privilege Abuse', 'grants that nobody uses and that can be taken away'],
  [
    'grants',
    csf,
    'PR.AA-05',
    'Access permissions are defined in a policy, managed, enforced, and reviewed',
    'grants that nobody uses and that can be taken away',
  ],
  ['grants', maestro, 'Cross-Layer', 'Privilege Escalation', 'what an agent that is taken over could ask for'],
  ['denials', owasp, 'ASI10', 'Rogue Agents', 'agents that ask for what they may not have'],
  [
    'denials',
    csf,
    'DE.CM-03',
    'Personnel activity and technology usage are monitored',
    'refusals by agent, tool and rule',
  ],
  ['denials', maestro, 'L7', 'Compromised Agents', 'agents that ask for what they may not have'],
  [
    'approvals',
    owasp,
    'ASI09',
    'Human-Agent Trust Exploitation',
    'how often people approve, deny or do not answer, and how fast',
  ],
  [
    'approvals',
    aiRmf,
    'GOVERN 3.2',
    'Roles for human-AI configurations and oversight are defined',
    'decisions of people, by outcome',
  ],
  [
    'approvals',
    aiRmf,
    'MAP 3.5',
    'Processes for human oversight are defined, assessed, and documented',
    'decisions of people, by outcome and latency',
  ],
  [
    'renewals',
    aiRmf,
    'MANAGE 4.1',
    'Post-deployment monitoring plans are implemented',
    'how long work goes on under renewed decisions',
  ],
  [
    'outcomes',
    aiRmf,
    'MANAGE 2.4',
    'Mechanisms to supersede, disengage, or deactivate are in place and applied',
    'what became of every credential, and why',
  ],
  [
    'outcomes',
    owasp,
    'ASI08',
    'Cascading Failures',
    'credentials that could not be revoked, and tasks that closed degraded',
  ],
  ['outcomes', csf, 'RS.MI-01', 'Incidents are contained', 'what became of every credential, and why'],
  [
    'outcomes',
    csf,
    'PR.PS-04',
    'Log records are generated and made available for continuous monitoring',
    'every count is of committed audit events and leases',
  ],
  ['outcomes', maestro, 'L7', 'Repudiation', 'every count is of committed audit events and leases'],
];

export const controls: readonly Control[] = rows.map(([part, framework, item, title, evidence]) => ({
  part,
  framework,
  item,
  title,
  evidence,
}));
